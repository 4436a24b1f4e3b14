#pragma once

#include <cstddef>
#include <span>

namespace oq {

/// How much of the resident part of `bytes` lies on huge pages, 0 to 1, as the kernel tells it
/// (Linux: /proc/self/smaps); -1 where it does not. Whatever else shares their mapping counts too.
double huge_page_share(std::span<const std::byte> bytes);

}  // namespace oq
