// State of the emulator. A launch runs on one OS thread and launches do not overlap, so globals do.
//
//   fibers.cpp    one stack per CUDA thread and the switch between them
//   schedule.cpp  which thread runs next; barriers, warp collectives, deadlocks
//   checker.cpp   judges memory accesses: bounds, races, uninitialised reads (flavour "check" only)
//   hooks.cpp     where the compiled kernel reports them
//   copies.cpp    asynchronous copies to shared memory
//   warpgroup.cpp products of a warpgroup
//   launch.cpp    the entry point, the loop over blocks, problem reports
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include <vector_types.h>

#include "../device/collectives.h"

extern "C" {
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// ---- what Python passes; launch.py declares the same structures ----
struct EmuArgument {  // one pointer argument
    uintptr_t base;
    uint64_t bytes;
    int32_t element_shift;  // log2 of the element size
    int32_t position;       // number of the argument
    uint8_t* written;       // a flag an element, or null: contents count as initialised
};
struct EmuSharedVariable {
    uint64_t offset, bytes;  // in the kernel's library
    const char* name;
};
struct EmuOptions {
    uint64_t seed, only_blocks;
    double preempt, time_limit;
    int32_t thread_order, block_order, max_reports, allow_early_exit, cooperative;
};
struct EmuCounters {
    uint64_t global_loads, global_stores, global_load_bytes, global_store_bytes, atomics;
    uint64_t shared_loads, shared_stores, shared_load_bytes, shared_store_bytes;
    uint64_t barriers, warp_collectives, threads;
};
}

namespace emu {

enum Order { ASCENDING, DESCENDING, RANDOM };
enum class AccessType : uint8_t { READ, WRITE, ATOMIC };
enum class State : uint8_t { READY, AT_BARRIER, IN_COLLECTIVE, YIELDED, FINISHED };

struct BarrierWait {
    int kind, vote, line;
    int* result;
    void* site;
};
struct CollectiveWait {
    int kind, bytes, argument, width;
    unsigned mask;
    void* value;
    void* site;
};
struct Copy {  // asked for, and not yet waited for
    uintptr_t to;
    unsigned char bytes[16];
    unsigned count, group;
};
struct Product {  // of a warpgroup, begun and not yet waited for
    uint64_t a, b;
    unsigned columns;
    bool a_by_lines, b_by_lines;
    unsigned group;
    void* site;
    std::vector<uint16_t> left, right;  // what this thread's sums take of the factors
    std::vector<float*> sums;
    std::vector<float> results;
};
struct Thread {
    void* stack_pointer;
    char* stack;
    State state;
    uint32_t id;
    uint3 index;
    BarrierWait barrier;
    CollectiveWait collective;
    std::vector<Copy> copies;
    unsigned groups;  // of copies, closed so far
    std::vector<Product> products;
    unsigned product_groups;
    bool products_may_begin;
};

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t PAGE = 4096;

struct KernelLibrary {  // the shared object the kernel lives in
    uintptr_t load_address, code_begin, code_end, data_begin, data_end, begin, end;
};
struct SharedVariable {
    uintptr_t base;
    size_t bytes;
    const char* name;
};

extern std::vector<Thread> threads;
extern std::vector<uint32_t> ready;
extern Thread* current;          // null while the scheduler runs
extern bool aborted;             // an error ended the launch
extern volatile bool expired;    // the time limit has passed
extern EmuOptions options;
extern EmuCounters counters;
extern KernelLibrary library;
extern std::vector<EmuArgument> arguments;
extern std::vector<SharedVariable> shared_variables;
extern char* dynamic_shared;
extern size_t dynamic_shared_bytes;
extern void (*kernel_entry)(void**);
extern void** kernel_arguments;

inline uint32_t thread_count() { return (uint32_t)threads.size(); }
uint32_t random_below(uint32_t n);

// fibers.cpp
void run_thread(Thread&);                 // until it waits, yields or ends
void to_scheduler();                      // from a thread
[[noreturn]] void end_thread();           // stops it at once and aborts the launch
void release_stack(Thread&);
void release_spare_stacks();

// schedule.cpp
void start_block();
bool run_block();  // until it ends, or, in a cooperative launch, until it can only wait for other blocks: false
void end_block();
uint64_t steps_forward();  // how often something happened other than waiting

// tensor.cpp
void multiply_fragments(int kind, EmuFragments* lanes);  // the sums replace each lane's c
void exchange_rows(int kind, EmuMatrices* lanes);        // words of the matrices replace each lane's row
float half_number(int kind, uint16_t bits);              // of the type that EMU_MMA_BF16 or EMU_MMA_F16 multiply

// launch.cpp
void report(const char* kind, const void* site, const void* other_site, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

// checker.cpp; empty in flavour "plain"
void checker_begin_launch();
void checker_end_launch();
void checker_begin_block(uint64_t number);
void checker_enter_block(uint64_t number);  // of a cooperative launch, begun before
void checker_barrier();
void checker_syncwarp(uint32_t warp);
void checker_fence();  // a device-wide one
void checker_access(uintptr_t address, unsigned bytes, AccessType, uintptr_t site, bool is_volatile = false);
void checker_atomic(uintptr_t address, unsigned bytes, uintptr_t site);
void checker_copy_begins(uintptr_t to, unsigned bytes, uintptr_t from, unsigned given, uintptr_t site);
void checker_copy_ends(uintptr_t to, unsigned bytes, uintptr_t site);
void checker_product_reads(uintptr_t address, unsigned bytes, uintptr_t site);
void checker_show_to_products();

}  // namespace emu
