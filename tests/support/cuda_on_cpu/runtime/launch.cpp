// The entry point, the loop over blocks, the time limit, and the list of problems.
#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <link.h>
#include <set>
#include <string>
#include <sys/syscall.h>
#include <tuple>
#include <ucontext.h>
#include <unistd.h>

#include "runtime.h"

extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
}

namespace emu {

std::vector<Thread> threads;
std::vector<uint32_t> ready;
Thread* current;
bool aborted;
volatile bool expired;
EmuOptions options;
EmuCounters counters;
KernelLibrary library;
std::vector<EmuArgument> arguments;
std::vector<SharedVariable> shared_variables;
char* dynamic_shared;
size_t dynamic_shared_bytes;
void (*kernel_entry)(void**);
void** kernel_arguments;

static std::string reports;
static int report_count;
static std::set<std::tuple<std::string, const void*, const void*>> reported;
static uint64_t random_state;

uint32_t random_below(uint32_t n)  // xorshift64
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 11) % n);
}

// One line a problem: kind, offset of the source place and of the other place, thread, text.
void report(const char* kind, const void* site, const void* other_site, const char* format, ...)
{
    if (!reported.insert({kind, site, other_site}).second) return;
    if (++report_count > options.max_reports) return;
    char text[600], head[200];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    // A return address points behind the call; one byte back lies inside it.
    auto offset = [](const void* place) { return place ? (uintptr_t)place - library.load_address - 1 : 0; };
    const uint3 thread = current ? current->index : uint3{0, 0, 0};
    snprintf(head, sizeof head, "%s\t%lx\t%lx\tblock (%u,%u,%u) thread (%u,%u,%u)\t", kind, offset(site),
             offset(other_site), blockIdx.x, blockIdx.y, blockIdx.z, thread.x, thread.y, thread.z);
    reports += head;
    reports += text;
    reports += "\n";
}

// ---- where the kernel's library lies in memory ----

static int find_library(dl_phdr_info* object, size_t, void* address_inside)
{
    KernelLibrary found{object->dlpi_addr, 0, 0, 0, 0, UINTPTR_MAX, 0};
    bool mine = false;
    for (int i = 0; i < object->dlpi_phnum; ++i) {
        const auto& segment = object->dlpi_phdr[i];
        if (segment.p_type != PT_LOAD) continue;
        const uintptr_t begin = object->dlpi_addr + segment.p_vaddr, end = begin + segment.p_memsz;
        found.begin = std::min(found.begin, begin), found.end = std::max(found.end, end);
        if (segment.p_flags & PF_W) found.data_begin = begin, found.data_end = end;
        if (segment.p_flags & PF_X) found.code_begin = begin, found.code_end = end;
        mine |= (uintptr_t)address_inside >= begin && (uintptr_t)address_inside < end;
    }
    if (mine) library = found;
    return mine;
}

// ---- the time limit: a loop that never ends is a finding, not a hang ----

static timer_t timer;
static const int TIMER_SIGNAL = SIGRTMIN + 5;

static void on_timer(int, siginfo_t*, void* context)
{
    expired = true;  // seen at the next memory access or thread switch, if there is one
    const uintptr_t at = ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
    if (!current || at < library.code_begin || at >= library.code_end) return;
    report("timeout", (void*)(at + 1), nullptr, "the launch took longer than %g s of processor time", options.time_limit);
    end_thread();
}

static void start_timer()
{
    expired = false;
    struct sigaction action{};
    action.sa_sigaction = on_timer;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;  // the handler may leave by end_thread
    sigaction(TIMER_SIGNAL, &action, nullptr);
    struct sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event._sigev_un._tid = syscall(SYS_gettid);
    event.sigev_signo = TIMER_SIGNAL;
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
    itimerspec when{};
    when.it_value.tv_sec = (time_t)options.time_limit;
    when.it_value.tv_nsec = (long)((options.time_limit - (double)when.it_value.tv_sec) * 1e9) + 1;
    when.it_interval.tv_nsec = 20'000'000;  // again, until it meets kernel code
    timer_settime(timer, 0, &when, nullptr);
}

// ---- the grid ----

// Number of the k-th block to run.
static uint64_t block_number(uint64_t k, uint64_t blocks, uint64_t run, const std::vector<uint32_t>& shuffled)
{
    if (!shuffled.empty()) return shuffled[k];
    if (options.block_order == DESCENDING) return blocks - 1 - k;
    if (run == blocks) return k;
    return (uint64_t)((unsigned __int128)k * (blocks - 1) / std::max<uint64_t>(run - 1, 1));  // spread over the grid
}

static std::vector<uint32_t> shuffled_blocks(uint64_t blocks)
{
    std::vector<uint32_t> order(blocks);
    for (uint32_t i = 0; i < blocks; ++i) order[i] = i;
    for (uint32_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
    return order;
}

static void run_grid()
{
    const uint64_t blocks = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
    const uint64_t run = options.only_blocks ? std::min(blocks, options.only_blocks) : blocks;
    std::vector<uint32_t> shuffled;
    if (options.block_order == RANDOM && run == blocks) shuffled = shuffled_blocks(blocks);
    constexpr int GARBAGE = 0xCB;  // shared memory starts undefined
    for (uint64_t k = 0; k < run && !aborted; ++k) {
        const uint64_t b = block_number(k, blocks, run, shuffled);
        blockIdx = uint3{(unsigned)(b % gridDim.x), (unsigned)(b / gridDim.x % gridDim.y),
                         (unsigned)(b / ((uint64_t)gridDim.x * gridDim.y))};
        memset(dynamic_shared, GARBAGE, dynamic_shared_bytes);
        for (SharedVariable& variable : shared_variables) memset((void*)variable.base, GARBAGE, variable.bytes);
        checker_begin_block(b);
        start_block();
        run_block();
        end_block();
        counters.threads += thread_count();
    }
}

// ---- a cooperative launch: all blocks at the same time, each as far as it comes without the others ----

constexpr size_t MARGIN = 4096 + 256;

static char* inside(std::vector<char>& memory) { return (char*)(((uintptr_t)memory.data() + MARGIN) & ~(uintptr_t)255); }

struct Resident {  // what the globals hold while the block runs
    std::vector<Thread> threads;
    std::vector<uint32_t> ready;
    std::vector<char> memory;
    uint64_t number;
    bool finished;
};

static void change_places(Resident& block)
{
    std::swap(threads, block.threads);
    std::swap(ready, block.ready);
    blockIdx = uint3{(unsigned)(block.number % gridDim.x), (unsigned)(block.number / gridDim.x % gridDim.y),
                     (unsigned)(block.number / ((uint64_t)gridDim.x * gridDim.y))};
    dynamic_shared = inside(block.memory);
}

static void report_waiting_grid(Resident& block, size_t unfinished)
{
    change_places(block);
    current = &threads[0];
    report("grid-deadlock", nullptr, nullptr, "%zu blocks wait for others, which never come", unfinished);
    aborted = true;
    change_places(block);
}

static void run_cooperative_grid()
{
    constexpr int GARBAGE = 0xCB, PATIENCE = 100;  // rounds in which every block waits for another one
    const uint64_t blocks = (uint64_t)gridDim.x * gridDim.y * gridDim.z;
    std::vector<Resident> residents(blocks);
    for (uint64_t number = 0; number < blocks; ++number) {
        Resident& block = residents[number];
        block = Resident{std::vector<Thread>(threads.size()), {}, std::vector<char>(dynamic_shared_bytes + 2 * MARGIN, GARBAGE),
                         number, false};
        change_places(block);
        checker_begin_block(number);
        start_block();
        change_places(block);
    }
    size_t unfinished = blocks;
    int patience = PATIENCE;
    while (unfinished && !aborted) {
        const uint64_t before = steps_forward();
        const std::vector<uint32_t> shuffled = shuffled_blocks(blocks);
        for (uint64_t k = 0; k < blocks && !aborted; ++k) {
            const uint64_t ordered = options.block_order == DESCENDING ? blocks - 1 - k : k;
            Resident& block = residents[options.block_order == RANDOM ? shuffled[k] : ordered];
            if (block.finished) continue;
            change_places(block);
            checker_enter_block(block.number);
            block.finished = run_block();
            unfinished -= block.finished;
            change_places(block);
        }
        patience = steps_forward() == before ? patience - 1 : PATIENCE;
        if (!patience && unfinished && !aborted)
            report_waiting_grid(*std::find_if(residents.begin(), residents.end(), [](auto& b) { return !b.finished; }),
                                unfinished);
    }
    for (Resident& block : residents) {
        change_places(block);
        end_block();
        counters.threads += thread_count();
        change_places(block);
    }
}

}  // namespace emu

using namespace emu;

extern "C" {

// Runs the kernel and returns the number of problems. `shape` is the grid's three sizes and the block's.
int emu_launch(void (*entry)(void**), void** values, const unsigned* shape, size_t dynamic_bytes,
               const EmuArgument* pointers, int pointer_count, const EmuSharedVariable* variables, int variable_count,
               const EmuOptions* chosen)
{
    options = *chosen;
    random_state = (options.seed + 1) * 0x9E3779B97F4A7C15ull;
    reports.clear(), reported.clear(), report_count = 0;
    counters = EmuCounters{};
    aborted = false, current = nullptr;
    kernel_entry = entry, kernel_arguments = values;
    dl_iterate_phdr(find_library, (void*)entry);
    gridDim = dim3(shape[0], shape[1], shape[2]);
    blockDim = dim3(shape[3], shape[4], shape[5]);
    threads.assign((size_t)shape[3] * shape[4] * shape[5], Thread{});
    arguments.assign(pointers, pointers + pointer_count);
    shared_variables.clear();
    for (int i = 0; i < variable_count; ++i)
        shared_variables.push_back({library.load_address + variables[i].offset, variables[i].bytes, variables[i].name});
    std::vector<char> memory(dynamic_bytes + 2 * MARGIN);
    dynamic_shared = inside(memory);
    dynamic_shared_bytes = dynamic_bytes;

    checker_begin_launch();
    start_timer();
    if (options.cooperative) run_cooperative_grid();
    else run_grid();
    timer_delete(timer);
    checker_end_launch();
    release_spare_stacks();
    return report_count;
}

const char* emu_reports(void) { return reports.c_str(); }
const EmuCounters* emu_counters(void) { return &counters; }
}
