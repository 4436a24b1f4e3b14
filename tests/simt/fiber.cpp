#include "tests/simt/fiber.h"

#include <cstdlib>
#include <new>

#include <sys/mman.h>

#include "tests/simt/poison.h"

#if defined(OQ_SIMT_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves what a function must preserve, changes stacks, and restores. ucontext would enter the
// kernel twice a switch to save a signal mask that nobody uses.
extern "C" void oq_simt_switch(void** save, void* to);
asm(R"(
.text
.globl oq_simt_switch
.type oq_simt_switch, @function
oq_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size oq_simt_switch, .-oq_simt_switch
)");
#else
#include <ucontext.h>
#endif

namespace oq::simt {

struct Fiber::State {
  std::byte* stack = nullptr;
  void (*entry)(void*) = nullptr;
  void* argument = nullptr;
#if defined(__x86_64__)
  void* fiber = nullptr;  // stack pointers of whoever does not run
  void* caller = nullptr;
#else
  ucontext_t fiber, caller;
#endif
  // Stack of the caller and fake stacks of both, for AddressSanitizer.
  const void* caller_stack = nullptr;
  size_t caller_bytes = 0;
  void* caller_fake = nullptr;
  void* fiber_fake = nullptr;

  void to_fiber() {
#if defined(__x86_64__)
    oq_simt_switch(&caller, fiber);
#else
    swapcontext(&caller, &fiber);
#endif
  }
  void to_caller() {
#if defined(__x86_64__)
    oq_simt_switch(&fiber, caller);
#else
    swapcontext(&fiber, &caller);
#endif
  }
};

Fiber::Fiber() : state_(std::make_unique<State>()) {
  void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  state_->stack = static_cast<std::byte*>(p);
}

Fiber::~Fiber() { munmap(state_->stack, kStackBytes); }

void Fiber::enter(void* fiber) {
  auto* self = static_cast<Fiber*>(fiber);
#if defined(OQ_SIMT_ASAN)
  State& s = *self->state_;
  __sanitizer_finish_switch_fiber(nullptr, &s.caller_stack, &s.caller_bytes);
#endif
  self->state_->entry(self->state_->argument);
  std::abort();  // entry did not end with finish
}

#if defined(__x86_64__)
namespace {

// The first switch to a fiber "returns" here; the fiber's address waits on the stack.
extern "C" void oq_simt_entry();
extern "C" void oq_simt_enter(void* fiber, void (*enter)(void*)) { enter(fiber); }
asm(R"(
.text
.globl oq_simt_entry
.type oq_simt_entry, @function
oq_simt_entry:
  movq %rbx, %rdi
  movq %r12, %rsi
  call oq_simt_enter
.size oq_simt_entry, .-oq_simt_entry
)");

}  // namespace
#endif

void Fiber::start(void (*entry)(void*), void* argument) {
  State& s = *state_;
  s.entry = entry;
  s.argument = argument;
  s.fiber_fake = nullptr;
  unpoison(s.stack, kStackBytes);  // whatever ran there may have been cut off
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(s.stack + kStackBytes);
  *--top = nullptr;  // two, so that the stack is 16-aligned at the entry's call
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&oq_simt_entry);
  *--top = nullptr;                                 // rbp
  *--top = this;                                    // rbx
  *--top = reinterpret_cast<void*>(&Fiber::enter);  // r12
  for (int i = 0; i < 3; ++i) *--top = nullptr;     // r13 to r15
  s.fiber = top;
#else
  getcontext(&s.fiber);
  s.fiber.uc_stack.ss_sp = s.stack;
  s.fiber.uc_stack.ss_size = kStackBytes;
  s.fiber.uc_link = nullptr;
  static thread_local Fiber* starting;  // makecontext passes ints only
  starting = this;
  makecontext(
      &s.fiber, +[] { enter(starting); }, 0);
#endif
}

void Fiber::resume() {
  State& s = *state_;
#if defined(OQ_SIMT_ASAN)
  __sanitizer_start_switch_fiber(&s.caller_fake, s.stack, kStackBytes);
#endif
  s.to_fiber();
#if defined(OQ_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(s.caller_fake, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
  State& s = *state_;
#if defined(OQ_SIMT_ASAN)
  __sanitizer_start_switch_fiber(&s.fiber_fake, s.caller_stack, s.caller_bytes);
#endif
  s.to_caller();
#if defined(OQ_SIMT_ASAN)
  __sanitizer_finish_switch_fiber(s.fiber_fake, &s.caller_stack, &s.caller_bytes);
#endif
}

void Fiber::finish() {
  State& s = *state_;
#if defined(OQ_SIMT_ASAN)
  __sanitizer_start_switch_fiber(nullptr, s.caller_stack, s.caller_bytes);  // frees the fake stack
#endif
  s.to_caller();
  std::abort();
}

}  // namespace oq::simt
