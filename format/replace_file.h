#pragma once

#include <filesystem>

namespace oq {

/// The end of an atomic write: renames `part`, which its writer has flushed, over `path` and
/// flushes their folder, so that the new name outlives a power failure. False with errno set where
/// it cannot be renamed; `path` is then as it was.
bool replace_file(const std::filesystem::path& part, const std::filesystem::path& path);

}  // namespace oq
