// Judges every memory access of a kernel in flavour "check" (hooks.cpp says how it is told of them):
// bounds, initialisation, and races by happens-before over shadow cells.
#include "runtime.h"

#ifndef EMU_CHECK
namespace emu {
void checker_begin_launch() {}
void checker_end_launch() {}
void checker_begin_block(uint64_t) {}
void checker_enter_block(uint64_t) {}
void checker_barrier() {}
void checker_syncwarp(uint32_t) {}
void checker_fence() {}
void checker_atomic(uintptr_t, unsigned, uintptr_t) {}
void checker_copy_begins(uintptr_t, unsigned, uintptr_t, unsigned, uintptr_t) {}
void checker_copy_ends(uintptr_t, unsigned, uintptr_t) {}
void checker_product_reads(uintptr_t, unsigned, uintptr_t) {}
void checker_show_to_products() {}
}  // namespace emu
#else

#include <algorithm>
#include <bitset>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>
#include <unordered_map>

namespace emu {

// Time is counted in epochs: each block starts one and each __syncthreads of a block starts its next.
struct Access {
    uint32_t epoch;       // 0: never
    uint32_t warp_epoch;  // __syncwarps of the warp so far
    uint32_t site;        // in the kernel's library
    uint16_t thread;
    uint8_t atomic;         // of a write
    uint8_t other_threads;  // of a read: 1 others of the warp read in this epoch too, 2 other warps too
};
struct Cell {  // history of one element of global memory, or of one byte of shared memory
    Access write, read;
    Access earlier_read;  // the last read by another block
};
struct Shadow {
    Cell* cells;
    size_t count;
};
struct Release {  // a fence and then an atomic publish what the block has done up to the fence
    uint32_t epoch;
    std::bitset<1024> threads;  // all of whose accesses in this epoch are
};
using Releases = std::unordered_map<uint64_t, Release>;  // by the block
struct Sight {       // what is known of other blocks
    Releases seen;   // through an atomic: volatile reads and writes may follow
    Releases fresh;  // and a fence behind it: so may plain reads, which L1 could serve with older values
};
struct Fence {  // a thread's last one
    uint32_t epoch;
    bool wrote;  // to global memory, since then
};

static std::vector<Shadow> argument_shadow, static_shadow;
static Shadow data_shadow;
static std::unordered_map<uintptr_t, Releases> released;  // by the address of the atomic
static std::vector<uint64_t> block_of;                    // by the epoch
static size_t last_argument;

struct BlockState {
    uint64_t number;
    uint32_t epoch, start;  // the current one and the first
    std::vector<uint32_t> warp_epoch;
    std::vector<Fence> fences;
    Sight all;                                // of every thread
    std::unordered_map<uint32_t, Sight> own;  // of single ones, until the next __syncthreads
    Shadow dynamic_shadow;
    std::vector<uint16_t> copying;  // of each byte of it: 1 + the thread whose copy to it is under way, or 0
    std::vector<uint8_t> hidden;    // of each byte of it: whether a product may not yet see what was written
    std::vector<std::vector<uint32_t>> hidden_by;  // these bytes, by the thread that has written
};
static std::map<uint64_t, BlockState> blocks;  // those of a cooperative launch run at the same time
static BlockState* here;
static bool cached;  // the access under way is a read that L1 may serve

static Shadow make_shadow(size_t count)
{
    void* memory = mmap(nullptr, (count + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        perror("cuda_on_cpu: no memory for the checker");
        abort();
    }
    return Shadow{(Cell*)memory, count};
}

static void free_shadow(Shadow& shadow)
{
    if (shadow.cells) munmap(shadow.cells, (shadow.count + 1) * sizeof(Cell));
    shadow = Shadow{};
}

void checker_begin_launch()
{
    for (EmuArgument& argument : arguments)
        argument_shadow.push_back(make_shadow(argument.bytes >> argument.element_shift));
    for (SharedVariable& variable : shared_variables) static_shadow.push_back(make_shadow(variable.bytes));
    data_shadow = make_shadow(library.data_end - library.data_begin);
    block_of.assign(1, 0);
    last_argument = 0;
}

void checker_end_launch()
{
    for (Shadow& shadow : argument_shadow) free_shadow(shadow);
    for (Shadow& shadow : static_shadow) free_shadow(shadow);
    for (auto& [number, block] : blocks) free_shadow(block.dynamic_shadow);
    free_shadow(data_shadow);
    argument_shadow.clear();
    static_shadow.clear();
    blocks.clear();
    released.clear();
}

static uint32_t next_epoch()
{
    block_of.push_back(here->number);
    return (uint32_t)block_of.size() - 1;
}

void checker_begin_block(uint64_t number)
{
    Shadow shadow{};
    if (!options.cooperative && !blocks.empty()) {  // the block before has ended
        shadow = here->dynamic_shadow;
        blocks.clear();
    }
    here = &blocks[number];
    here->number = number;
    here->epoch = here->start = next_epoch();
    here->warp_epoch.assign((thread_count() + 31) / 32, 0);
    here->fences.assign(thread_count(), Fence{});
    here->dynamic_shadow = shadow.cells ? shadow : make_shadow(dynamic_shared_bytes);
    here->copying.assign(dynamic_shared_bytes, 0);
    here->hidden.assign(dynamic_shared_bytes, 0);
    here->hidden_by.assign(thread_count(), {});
}

void checker_enter_block(uint64_t number) { here = &blocks[number]; }

static void learn(Releases& known, const Releases& news)
{
    for (const auto& [block, release] : news) {
        Release& old = known[block];
        if (old.epoch < release.epoch) old = release;
        else if (old.epoch == release.epoch) old.threads |= release.threads;
    }
}

void checker_barrier()
{
    for (const auto& [thread, sight] : here->own) {
        learn(here->all.seen, sight.seen);
        learn(here->all.fresh, sight.fresh);
    }
    here->own.clear();
    here->epoch = next_epoch();
}

void checker_fence()
{
    here->fences[current->id] = Fence{here->epoch, false};
    Sight& own = here->own[current->id];
    learn(own.fresh, here->all.seen);
    learn(own.fresh, own.seen);
}

void checker_syncwarp(uint32_t warp) { ++here->warp_epoch[warp]; }

// ---- races ----

static bool is_of_other_block(const Access& access)
{
    return access.epoch && block_of[access.epoch] != here->number;
}

static bool holds(const Releases& known, uint32_t then, uint16_t thread)
{
    auto found = known.find(block_of[then]);
    if (found == known.end()) return false;
    const Release& release = found->second;
    return then < release.epoch || (then == release.epoch && release.threads[thread]);
}

// Does this thread know what a thread of another block did in epoch `then`?
static bool published(uint32_t then, uint16_t thread)
{
    const auto known = [&](const Sight& sight) { return holds(cached ? sight.fresh : sight.seen, then, thread); };
    auto own = here->own.find(current->id);
    return known(here->all) || (own != here->own.end() && known(own->second));
}

static bool happens_before(const Access& earlier)
{
    if (earlier.epoch == 0) return true;
    if (is_of_other_block(earlier)) return published(earlier.epoch, earlier.thread);
    if (earlier.epoch != here->epoch || earlier.thread == current->id) return true;
    const uint32_t warp = current->id / 32;
    return earlier.thread / 32u == warp && earlier.warp_epoch != here->warp_epoch[warp];
}

struct Place {  // for reports
    const char* space;
    long number;
    int argument;  // or -1
};

static void report_race(const char* what, uintptr_t site, const Access& other, const Place& place)
{
    char where[80];
    if (place.argument >= 0)
        snprintf(where, sizeof where, "argument %d element %ld", place.argument, place.number);
    else
        snprintf(where, sizeof where, "byte %ld", place.number);
    const bool other_block = is_of_other_block(other);
    report(other_block ? "race-between-blocks" : "race-in-block", (void*)site,
           (void*)(library.load_address + other.site), "%s in %s memory, %s; the other access is by %sthread %u", what,
           place.space, where, other_block ? "another block, " : "", other.thread);
}

static void check_reads_before(const Cell& cell, uintptr_t site, const Place& place)
{
    const Access& read = cell.read;
    const bool same_warp_epoch = read.warp_epoch == here->warp_epoch[current->id / 32];
    const bool others = read.other_threads == 2 || (read.other_threads == 1 && same_warp_epoch);
    if (!happens_before(read) || (read.epoch == here->epoch && others)) report_race("write after read", site, read, place);
    if (!happens_before(cell.earlier_read)) report_race("write after read", site, cell.earlier_read, place);
}

static const char* conflict_with_write(AccessType type, bool other_atomic)
{
    if (type == AccessType::ATOMIC) return "atomic after plain write";
    if (type == AccessType::READ && other_atomic) return "plain read after atomic";
    if (type == AccessType::READ) return "read after write, perhaps of an older value in L1";
    return other_atomic ? "plain write after atomic" : "write after write";
}

static void note_read(Cell& cell, const Access& now)
{
    Access& read = cell.read;
    if (is_of_other_block(read)) cell.earlier_read = read;
    uint8_t others = 0;
    if (read.epoch == here->epoch) {
        others = read.other_threads;
        if (read.thread / 32 != now.thread / 32) others = 2;
        else if (read.thread != now.thread && others < 2) others = read.warp_epoch == now.warp_epoch;
        else if (others == 1 && read.warp_epoch != now.warp_epoch) others = 0;
    }
    read = now;
    read.other_threads = others;
}

static void visit(Cell& cell, AccessType type, uintptr_t site, const Place& place)
{
    const uint16_t thread = current->id;
    const bool atomic = type == AccessType::ATOMIC;
    const Access now{here->epoch, here->warp_epoch[thread / 32], (uint32_t)(site - library.load_address), thread, atomic, 0};
    if (!(atomic && cell.write.atomic) && !happens_before(cell.write))
        report_race(conflict_with_write(type, cell.write.atomic), site, cell.write, place);
    if (type == AccessType::READ) {
        note_read(cell, now);
    } else {
        check_reads_before(cell, site, place);
        cell.write = now;
    }
}

// ---- bounds ----

static const char* verb_of(AccessType type) { return type == AccessType::READ ? "read" : "write"; }

[[noreturn]] static void out_of_bounds(uintptr_t address, unsigned bytes, AccessType type, uintptr_t site)
{
    const char* verb = verb_of(type);
    const EmuArgument* nearest = nullptr;
    uint64_t distance = 64 << 20;  // further away than this it is a wild pointer
    for (const EmuArgument& argument : arguments) {
        const uintptr_t end = argument.base + argument.bytes;
        const uint64_t d = address >= end ? address - end : address < argument.base ? argument.base - address : 0;
        if (d < distance) distance = d, nearest = &argument;
    }
    if (address < PAGE) {
        report("null-pointer", (void*)site, nullptr, "%s of %u bytes at address %#lx", verb, bytes, address);
    } else if (nearest) {
        const long element = ((long)address - (long)nearest->base) >> nearest->element_shift;
        report("out-of-bounds", (void*)site, nullptr, "%s of %u bytes at element %ld of argument %d, which has %lu", verb,
               bytes, element, nearest->position, (unsigned long)(nearest->bytes >> nearest->element_shift));
    } else {
        report("wild-pointer", (void*)site, nullptr, "%s of %u bytes at %#lx, in no argument", verb, bytes, address);
    }
    end_thread();
}

[[noreturn]] static void out_of_shared_bounds(const char* name, long offset, size_t size, unsigned bytes,
                                              AccessType type, uintptr_t site)
{
    report("out-of-bounds-shared", (void*)site, nullptr, "%s of %u bytes at byte %ld of %s, which has %zu",
           verb_of(type), bytes, offset, name, size);
    end_thread();
}

// ---- one access ----

static void access_shared(Shadow& shadow, size_t offset, unsigned bytes, AccessType type, uintptr_t site)
{
    if (type != AccessType::WRITE) ++counters.shared_loads, counters.shared_load_bytes += bytes;
    if (type != AccessType::READ) ++counters.shared_stores, counters.shared_store_bytes += bytes;
    Cell before{}, *previous = nullptr;
    for (size_t byte = offset; byte < offset + bytes; ++byte) {
        Cell& cell = shadow.cells[byte];
        if (previous && memcmp(&cell, &before, sizeof cell) == 0) {  // same history, same outcome
            cell = *previous;
            continue;
        }
        before = cell;
        if (cell.write.epoch < here->start) cell.write = Access{};
        if (cell.read.epoch < here->start) cell.read = Access{};
        if (type != AccessType::WRITE && !cell.write.epoch)
            report("uninitialised-shared", (void*)site, nullptr,
                   "read of byte %zu, which this block has not written", byte);
        visit(cell, type, site, Place{"shared", (long)byte, -1});
        previous = &cell;
    }
}

// Whether some thread's copy to one of these bytes of dynamic shared memory is under way; reports it.
static void check_copies(size_t offset, unsigned bytes, AccessType type, uintptr_t site)
{
    for (size_t byte = offset; byte < offset + bytes; ++byte) {
        if (!here->copying[byte]) continue;
        report("copy-under-way", (void*)site, nullptr,
               "%s of byte %zu of dynamic shared memory, to which thread %d copies and has not waited", verb_of(type),
               byte, here->copying[byte] - 1);
        return;
    }
}

// What a thread writes, or its copies, products see after its fence.proxy.async and a barrier.
static void hide_from_products(size_t offset, unsigned bytes)
{
    for (size_t byte = offset; byte < offset + bytes; ++byte) {
        here->hidden[byte] = 1;
        here->hidden_by[current->id].push_back((uint32_t)byte);
    }
}

static void access_argument(size_t k, uintptr_t address, unsigned bytes, AccessType type, uintptr_t site)
{
    if (type == AccessType::READ) ++counters.global_loads, counters.global_load_bytes += bytes;
    if (type == AccessType::WRITE) ++counters.global_stores, counters.global_store_bytes += bytes;
    here->fences[current->id].wrote |= type == AccessType::WRITE;
    const EmuArgument& argument = arguments[k];
    const long first = (address - argument.base) >> argument.element_shift;
    const long last = (address + bytes - 1 - argument.base) >> argument.element_shift;
    for (long i = first; i <= last; ++i) {
        if (argument.written && type != AccessType::WRITE && !argument.written[i])
            report("uninitialised-global", (void*)site, nullptr, "read of argument %d element %ld, never written",
                   argument.position, i);
        visit(argument_shadow[k].cells[i], type, site, Place{"global", i, argument.position});
        if (argument.written && type != AccessType::READ) argument.written[i] = 1;
    }
}

static bool holds(const EmuArgument& argument, uintptr_t address, unsigned bytes)
{
    return address >= argument.base && address + bytes <= argument.base + argument.bytes;
}

static void maybe_preempt()
{
    if (options.preempt > 0 && current->state == State::READY && random_below(1 << 20) < options.preempt * (1 << 20)) {
        ready.push_back(current->id);
        to_scheduler();
    }
}

void checker_access(uintptr_t address, unsigned bytes, AccessType type, uintptr_t site, bool is_volatile)
{
    if (!current) return;
    cached = type == AccessType::READ && !is_volatile;
    const uintptr_t stack = (uintptr_t)current->stack, dynamic = (uintptr_t)dynamic_shared;
    if (address >= stack && address < stack + STACK_BYTES) return;  // the thread's own variables
    if (expired) {
        report("timeout", (void*)site, nullptr, "the launch took longer than %g s of processor time",
               options.time_limit);
        end_thread();
    }
    for (size_t k = 0; k < shared_variables.size(); ++k) {
        const SharedVariable& variable = shared_variables[k];
        if (address < variable.base || address >= variable.base + variable.bytes) continue;
        const size_t offset = address - variable.base;
        if (offset + bytes > variable.bytes)
            out_of_shared_bounds(variable.name, offset, variable.bytes, bytes, type, site);
        access_shared(static_shadow[k], offset, bytes, type, site);
        return maybe_preempt();
    }
    constexpr size_t MARGIN = 4096;  // the zone around dynamic shared memory that launch.cpp leaves free
    if (dynamic_shared_bytes && address + MARGIN >= dynamic && address < dynamic + dynamic_shared_bytes + MARGIN) {
        const long offset = (long)(address - dynamic), size = (long)dynamic_shared_bytes;
        if (offset < 0 || offset + (long)bytes > size)
            out_of_shared_bounds("dynamic shared memory", offset, size, bytes, type, site);
        check_copies(offset, bytes, type, site);
        if (type != AccessType::READ) hide_from_products(offset, bytes);
        access_shared(here->dynamic_shadow, offset, bytes, type, site);
        return maybe_preempt();
    }
    size_t k = last_argument;
    if (!(k < arguments.size() && holds(arguments[k], address, bytes)))
        for (k = 0; k < arguments.size() && !holds(arguments[k], address, bytes);) ++k;
    if (k < arguments.size()) {
        last_argument = k;
        access_argument(k, address, bytes, type, site);
    } else if (address >= library.data_begin && address + bytes <= library.data_end) {  // __device__ variables
        here->fences[current->id].wrote |= type == AccessType::WRITE;
        for (long i = address - library.data_begin, end = i + bytes; i < end; ++i)
            visit(data_shadow.cells[i], type, site, Place{"__device__", i, -1});
    } else if (type != AccessType::READ || address < library.begin || address >= library.end) {  // else a constant
        out_of_bounds(address, bytes, type, site);
    }
    maybe_preempt();
}

void checker_atomic(uintptr_t address, unsigned bytes, uintptr_t site)
{
    checker_access(address, bytes, AccessType::ATOMIC, site);
    auto found = released.find(address);
    if (found != released.end()) learn(here->own[current->id].seen, found->second);
    const Fence& fence = here->fences[current->id];
    if (!fence.epoch) return;
    Release& mine = released[address][here->number];
    if (mine.epoch < fence.epoch) mine = Release{fence.epoch, {}};
    if (mine.epoch == fence.epoch && !fence.wrote) mine.threads.set(current->id);
}

void checker_copy_begins(uintptr_t to, unsigned bytes, uintptr_t from, unsigned given, uintptr_t site)
{
    if (given) checker_access(from, given, AccessType::READ, site);
    checker_access(to, bytes, AccessType::WRITE, site);
    const size_t offset = to - (uintptr_t)dynamic_shared;
    for (size_t byte = offset; byte < offset + bytes; ++byte) here->copying[byte] = current->id + 1;
}

void checker_copy_ends(uintptr_t to, unsigned bytes, uintptr_t site)
{
    const size_t offset = to - (uintptr_t)dynamic_shared;
    for (size_t byte = offset; byte < offset + bytes; ++byte) here->copying[byte] = 0;
    checker_access(to, bytes, AccessType::WRITE, site);
}

void checker_show_to_products()
{
    for (const uint32_t byte : here->hidden_by[current->id]) here->hidden[byte] = 0;
    here->hidden_by[current->id].clear();
}

void checker_product_reads(uintptr_t address, unsigned bytes, uintptr_t site)
{
    const size_t offset = address - (uintptr_t)dynamic_shared;
    for (size_t byte = offset; byte < offset + bytes; ++byte) {
        if (!here->hidden[byte]) continue;
        report("hidden-from-products", (void*)site, nullptr,
               "a product reads byte %zu of dynamic shared memory, written without fence.proxy.async since", byte);
        break;
    }
    checker_access(address, bytes, AccessType::READ, site);
}

}  // namespace emu
#endif
