# Debian's cross compiler for 64-bit Arm, and qemu to run what it makes: g++-aarch64-linux-gnu,
# libc6-dev-arm64-cross, qemu-user. QEMU_CPU in the environment chooses the CPU.

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
