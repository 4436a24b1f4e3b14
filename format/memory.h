#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace oq {

/// Bytes that this process could still fill without swapping: what the system calls available,
/// within the memory limit of a container (cgroup v2).
uint64_t available_memory();

/// What a model's bytes lie on. A core that streams them looks a page up for every 4 KiB of
/// ordinary memory, and for every 2 MiB of huge pages: in a virtual machine the difference is a
/// fifth of a decode step (docs/kernels.md). `huge` is a wish: a system without such pages gives
/// what it has. `sparse` need not fit: pages are taken as they are written, and few will be.
enum class Pages { ordinary, huge, sparse };

/// Asks for such pages under memory that nobody has touched yet; parts of pages at its ends keep
/// what they have.
void advise(std::span<std::byte> memory, Pages pages);

/// Zeroed anonymous memory; the caller unmaps it. `name` stands where a path would, in messages.
/// Throws oq::Error when the memory that is available is not enough, before any of it is taken
/// (`sparse`: never so).
std::span<std::byte> map_memory(const std::string& name, uint64_t bytes, Pages pages);

}  // namespace oq
