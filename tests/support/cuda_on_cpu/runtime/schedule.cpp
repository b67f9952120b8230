// Which thread runs next; barriers and warp collectives, and what happens when they never complete.
#include <algorithm>
#include <climits>
#include <cstring>

#include "runtime.h"

namespace emu {

constexpr uint32_t WARP = 32;

static uint64_t forward;
uint64_t steps_forward() { return forward; }

static bool waits_in(const Thread& thread, const CollectiveWait& wait)
{
    return thread.state == State::IN_COLLECTIVE && thread.collective.mask == wait.mask &&
           thread.collective.kind == wait.kind;
}

// Lanes of the mask that do not wait in this collective.
static unsigned missing_lanes(const Thread& thread)
{
    const uint32_t first = thread.id / WARP * WARP;
    unsigned missing = 0;
    for (uint32_t lane = 0; lane < WARP; ++lane)
        if (thread.collective.mask >> lane & 1)
            if (first + lane >= thread_count() || !waits_in(threads[first + lane], thread.collective))
                missing |= 1u << lane;
    return missing;
}

static int shuffle_source(const CollectiveWait& wait, int lane)
{
    const int segment = lane / wait.width * wait.width, end = segment + wait.width;
    switch (wait.kind) {
        case EMU_SHUFFLE: return segment + (wait.argument & (wait.width - 1));
        case EMU_SHUFFLE_UP: return lane - wait.argument < segment ? lane : lane - wait.argument;
        case EMU_SHUFFLE_DOWN: return lane + wait.argument >= end ? lane : lane + wait.argument;
        default: return (lane ^ wait.argument) >= end ? lane : lane ^ wait.argument;
    }
}

static int reduced(int kind, unsigned mask, const int* values)
{
    unsigned sum = 0, ballot = 0, conjunction = ~0u, disjunction = 0, exclusive = 0;
    int least = INT_MAX, greatest = INT_MIN;
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const int value = values[lane];
        sum += value;
        ballot |= (unsigned)(value != 0) << lane;
        conjunction &= value, disjunction |= value, exclusive ^= value;
        least = std::min(least, value), greatest = std::max(greatest, value);
    }
    switch (kind) {
        case EMU_BALLOT: return ballot;
        case EMU_ANY: return ballot != 0;
        case EMU_ALL: return ballot == mask;
        case EMU_REDUCE_ADD: return sum;
        case EMU_REDUCE_MIN: return least;
        case EMU_REDUCE_MAX: return greatest;
        case EMU_REDUCE_AND: return conjunction;
        case EMU_REDUCE_OR: return disjunction;
        default: return exclusive;
    }
}

static void wake(Thread& thread)
{
    thread.state = State::READY;
    ready.push_back(thread.id);
}

static void complete_product(int kind, Thread* lanes)
{
    EmuFragments fragments[WARP];
    for (uint32_t lane = 0; lane < WARP; ++lane) fragments[lane] = *(EmuFragments*)lanes[lane].collective.value;
    multiply_fragments(kind, fragments);
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        *(EmuFragments*)lanes[lane].collective.value = fragments[lane];
        wake(lanes[lane]);
    }
}

static void complete_rows(int kind, Thread* lanes)
{
    EmuMatrices matrices[WARP];
    for (uint32_t lane = 0; lane < WARP; ++lane) matrices[lane] = *(EmuMatrices*)lanes[lane].collective.value;
    exchange_rows(kind, matrices);
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        *(EmuMatrices*)lanes[lane].collective.value = matrices[lane];
        wake(lanes[lane]);
    }
}

// Called at each arrival; the last one completes the collective and wakes its lanes.
static void complete_collective(Thread& arrived)
{
    if (missing_lanes(arrived)) return;
    const CollectiveWait wait = arrived.collective;
    Thread* lanes = &threads[arrived.id / WARP * WARP];
    ++counters.warp_collectives, ++forward;

    char given[WARP][16];
    int words[WARP] = {};
    if (wait.kind == EMU_LDMATRIX || wait.kind == EMU_LDMATRIX_TRANS) {
        complete_rows(wait.kind, lanes);
        return;
    }
    if (wait.kind >= EMU_MMA_TF32) {
        complete_product(wait.kind, lanes);
        return;
    }
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        if (!(wait.mask >> lane & 1) || !lanes[lane].collective.value) continue;
        memcpy(given[lane], lanes[lane].collective.value, lanes[lane].collective.bytes);
        if (lanes[lane].collective.bytes == 4) memcpy(&words[lane], given[lane], 4);
    }
    for (uint32_t lane = 0; lane < WARP; ++lane) {
        if (!(wait.mask >> lane & 1)) continue;
        CollectiveWait& mine = lanes[lane].collective;
        if (wait.kind >= EMU_SHUFFLE && wait.kind <= EMU_SHUFFLE_XOR) {
            const int source = shuffle_source(mine, lane);
            if (wait.mask >> source & 1) {
                memcpy(mine.value, given[source], mine.bytes);
            } else {
                Thread* before = current;
                current = &lanes[lane];
                report("shuffle-source", mine.site, nullptr, "lane %u reads lane %d, which is not in the mask %08x",
                       lane, source, wait.mask);
                current = before;
            }
        } else if (wait.kind != EMU_SYNCWARP) {
            const int result = reduced(wait.kind, wait.mask, words);
            memcpy(mine.value, &result, 4);
        }
        wake(lanes[lane]);
    }
    if (wait.kind == EMU_SYNCWARP) checker_syncwarp(arrived.id / WARP);
}

// No thread can run: reports why. `waiting` threads stand at a barrier, the first of them is given.
static void report_deadlock(const Thread* at_barrier, uint32_t waiting)
{
    Thread* stuck = nullptr;
    uint32_t in_collective = 0;
    for (Thread& thread : threads)
        if (thread.state == State::IN_COLLECTIVE && ++in_collective == 1) stuck = &thread;
    if (at_barrier)
        report("barrier-deadlock", at_barrier->barrier.site, stuck->collective.site,
               "%u threads wait at __syncthreads, %u in a warp collective that never completes", waiting,
               in_collective);
    current = stuck;
    report("warp-deadlock", stuck->collective.site, nullptr,
           "warp collective with mask %08x: lanes %08x never arrive", stuck->collective.mask, missing_lanes(*stuck));
}

// All threads that are left wait. Opens the barrier, or reports a deadlock and returns false.
static bool open_barrier()
{
    uint32_t waiting = 0, finished = 0, votes = 0;
    Thread* first = nullptr;
    Thread* elsewhere = nullptr;
    for (Thread& thread : threads) {
        if (thread.state == State::FINISHED) ++finished;
        if (thread.state != State::AT_BARRIER) continue;
        ++waiting;
        votes += thread.barrier.vote;
        if (!first) first = &thread;
        if (thread.barrier.line != first->barrier.line) elsewhere = &thread;
    }
    current = first;
    if (waiting + finished < thread_count()) {
        report_deadlock(first, waiting);
        return false;
    }
    if (finished && !options.allow_early_exit)
        report("barrier-divergence", first->barrier.site, nullptr,
               "%u of %u threads had left the kernel when the others reached __syncthreads", finished, thread_count());
    if (elsewhere)
        report("barrier-divergence", first->barrier.site, elsewhere->barrier.site,
               "threads %u and %u wait at different __syncthreads", first->id, elsewhere->id);
    for (Thread& thread : threads) {
        if (thread.state != State::AT_BARRIER) continue;
        if (thread.barrier.kind == EMU_SYNC_COUNT) *thread.barrier.result = votes;
        if (thread.barrier.kind == EMU_SYNC_AND) *thread.barrier.result = votes == waiting;
        if (thread.barrier.kind == EMU_SYNC_OR) *thread.barrier.result = votes > 0;
        wake(thread);
    }
    ++counters.barriers, ++forward;
    checker_barrier();
    return true;
}

static uint32_t next_thread(size_t& head)
{
    if (options.thread_order == DESCENDING) {
        const uint32_t id = ready.back();
        ready.pop_back();
        return id;
    }
    if (options.thread_order == RANDOM) std::swap(ready[head], ready[head + random_below(ready.size() - head)]);
    return ready[head++];
}

static bool all_finished()
{
    return std::all_of(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::FINISHED; });
}

void start_block()
{
    ready.clear();
    for (uint32_t id = 0; id < thread_count(); ++id) {
        Thread& thread = threads[id];
        thread.state = State::READY;
        thread.id = id;
        thread.copies.clear();
        thread.groups = 0;
        thread.products.clear();
        thread.product_groups = 0;
        thread.products_may_begin = false;
        thread.index = uint3{id % blockDim.x, id / blockDim.x % blockDim.y, id / (blockDim.x * blockDim.y)};
        ready.push_back(id);
    }
}

// Threads that stepped aside for other blocks go on.
static void wake_yielded()
{
    for (Thread& thread : threads) {
        if (thread.state != State::YIELDED) continue;
        thread.state = State::READY;
        ready.push_back(thread.id);
    }
}

static bool some_yielded()
{
    return std::any_of(threads.begin(), threads.end(), [](const Thread& t) { return t.state == State::YIELDED; });
}

bool run_block()
{
    wake_yielded();
    for (;;) {
        for (size_t head = 0; head < ready.size() && !aborted;) {
            Thread& thread = threads[next_thread(head)];
            run_thread(thread);
            if (expired && !aborted) {
                report("timeout", nullptr, nullptr, "the launch took longer than %g s of processor time",
                       options.time_limit);
                aborted = true;
            }
            if (thread.state == State::IN_COLLECTIVE) complete_collective(thread);
            forward += thread.state == State::FINISHED;
        }
        ready.clear();
        if (aborted || all_finished()) return true;
        if (some_yielded()) return false;
        if (!open_barrier()) aborted = true;
    }
}

void end_block()
{
    for (Thread& thread : threads) release_stack(thread);
    current = nullptr;
}

}  // namespace emu

using namespace emu;

extern "C" {

void emu_barrier(int kind, int vote, int* result, int line)
{
    current->barrier = BarrierWait{kind, vote, line, result, __builtin_return_address(0)};
    current->state = State::AT_BARRIER;
    to_scheduler();
}

void emu_warp(int kind, unsigned mask, void* value, int bytes, int argument, int width)
{
    void* site = __builtin_return_address(0);
    const uint32_t lane = current->id % WARP, first = current->id - lane;
    if (!(mask >> lane & 1)) {
        report("warp-mask", site, nullptr, "lane %u calls with the mask %08x, which leaves it out", lane, mask);
        end_thread();
    }
    if (first + WARP > thread_count()) {  // the last warp of the block is not full
        const unsigned existing = (1u << (thread_count() - first)) - 1;
        if (mask & ~existing) {
            report("warp-mask", site, nullptr, "the mask %08x names lanes beyond the block of %u threads", mask,
                   thread_count());
            mask &= existing;
        }
    }
    current->collective = CollectiveWait{kind, bytes, argument, width, mask, value, site};
    current->state = State::IN_COLLECTIVE;
    to_scheduler();
}

void emu_yield(void)
{
    if (options.cooperative) current->state = State::YIELDED;
    else ready.push_back(current->id);
    to_scheduler();
}

unsigned emu_activemask(void)
{
    const uint32_t first = current->id / WARP * WARP;
    unsigned mask = 0;
    for (uint32_t lane = 0; lane < WARP && first + lane < thread_count(); ++lane)
        if (threads[first + lane].state != State::FINISHED) mask |= 1u << lane;
    return mask;
}

void emu_fence(int scope)
{
    if (scope > 0) checker_fence();
}

void* emu_dynamic_shared(void) { return dynamic_shared; }

void emu_atomic(const void* address, int bytes, void* site)
{
    ++counters.atomics;
    checker_atomic((uintptr_t)address, bytes, (uintptr_t)site);
}

void emu_fail(const char* kind, const char* text)
{
    report(kind, __builtin_return_address(0), nullptr, "%s", text);
    end_thread();
}

}
