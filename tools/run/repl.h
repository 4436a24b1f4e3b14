#pragma once

#include <atomic>

#include "tools/run/chat_session.h"

namespace oq {

/// Says that turns were forgotten: what a ChatSession calls.
void report_drop(int64_t turns);

/// Talks with the person at the terminal until the input ends or /quit. An error in a turn is
/// shown and the conversation goes on.
void chat_repl(ChatSession& session, int64_t max_tokens, bool quiet,
               std::atomic<bool>& interrupted);

}  // namespace oq
