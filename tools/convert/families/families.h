#pragma once

#include "tools/convert/families.h"

// One function per file of this folder.

namespace oq::convert {

const Family& llama_family();
const Family& mistral_family();
const Family& mixtral_family();
const Family& qwen2_family();
const Family& falcon_family();
const Family& opt_family();
const Family& bloom_family();

}  // namespace oq::convert
