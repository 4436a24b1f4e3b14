#pragma once

#include <cstddef>
#include <memory>

namespace oq::simt {

/// A stack of its own that runs until it hands control back. One thread of the host runs all
/// fibers; AddressSanitizer is told of every switch.
class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 << 10;

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next `resume` calls entry(argument) on a fresh stack; what ran there before is forgotten.
  /// PRECOND: not called from this fiber. `entry` must end with `finish`, and never returns.
  void start(void (*entry)(void*), void* argument);

  /// Runs the fiber until it suspends or finishes.
  void resume();
  /// Called on the fiber: back to whoever resumed it.
  void suspend();
  /// The same for the last time.
  [[noreturn]] void finish();

 private:
  struct State;
  static void enter(void* fiber);
  std::unique_ptr<State> state_;
};

}  // namespace oq::simt
