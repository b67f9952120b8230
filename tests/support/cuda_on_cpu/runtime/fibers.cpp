// One stack per CUDA thread, and the switch between a thread and the scheduler.
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#include "runtime.h"

// Saves the callee-saved registers on the current stack, its pointer in *save, and continues at `load`.
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
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
.size emu_switch,.-emu_switch
)");
constexpr int SAVED_REGISTERS = 6;

namespace emu {

static std::vector<char*> spare_stacks;
static void* scheduler_stack_pointer;

void to_scheduler() { emu_switch(&current->stack_pointer, scheduler_stack_pointer); }

[[noreturn]] void end_thread()
{
    aborted = true;
    current->state = State::FINISHED;
    to_scheduler();
    abort();  // a finished thread is never resumed
}

static void thread_main()
{
    kernel_entry(kernel_arguments);
    current->state = State::FINISHED;
    to_scheduler();
    abort();
}

static char* take_stack()
{
    if (!spare_stacks.empty()) {
        char* stack = spare_stacks.back();
        spare_stacks.pop_back();
        return stack;
    }
    void* memory = mmap(nullptr, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("cuda_on_cpu: no memory for a thread's stack");
        abort();
    }
    mprotect(memory, PAGE, PROT_NONE);  // stacks grow down: an overflow faults here
    return (char*)memory + PAGE;
}

void release_stack(Thread& thread)
{
    if (thread.stack) spare_stacks.push_back(thread.stack);
    thread.stack = nullptr;
}

void release_spare_stacks()
{
    constexpr size_t KEPT = 1024;
    while (spare_stacks.size() > KEPT) {
        munmap(spare_stacks.back() - PAGE, STACK_BYTES + PAGE);
        spare_stacks.pop_back();
    }
}

void run_thread(Thread& thread)
{
    current = &thread;
    threadIdx = thread.index;
    if (!thread.stack) {
        thread.stack = take_stack();
        void** top = (void**)(thread.stack + STACK_BYTES);
        *--top = nullptr;  // keeps the alignment that a call instruction leaves
        *--top = (void*)thread_main;
        thread.stack_pointer = top - SAVED_REGISTERS;
    }
    emu_switch(&scheduler_stack_pointer, thread.stack_pointer);
    if (thread.state == State::FINISHED) release_stack(thread);
}

}  // namespace emu
