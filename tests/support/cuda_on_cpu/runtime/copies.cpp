// Asynchronous copies from global to shared memory (PTX ISA, "cp.async"), as late as they may be: what a thread has
// asked for is there when it has waited for its group. Until then the place holds garbage, and flavour "check" tells who
// reads or writes it. The source counts as read, and the place as written, when the copy begins, and as written again
// when it ends: so other threads that still read the place, or read it without a barrier behind the wait, are races.
#include <cstring>

#include "runtime.h"

namespace emu {

constexpr unsigned SHARED_WINDOW = 1 << 24;  // where shared addresses begin: 0 is none

static void end_copies(unsigned groups, uintptr_t site)
{
    std::vector<Copy> left;
    for (const Copy& copy : current->copies) {
        if (copy.group >= groups) {
            left.push_back(copy);
            continue;
        }
        checker_copy_ends(copy.to, copy.count, site);
        memcpy((void*)copy.to, copy.bytes, copy.count);
    }
    current->copies.swap(left);
}

}  // namespace emu

using namespace emu;

extern "C" {

unsigned emu_shared_address(const void* place, void* site)
{
    const intptr_t offset = (const char*)place - dynamic_shared;
    if (offset < -4096 || offset > (intptr_t)dynamic_shared_bytes + 4096) {
        report("wild-pointer", site, nullptr, "not an address of dynamic shared memory, which alone is known here");
        end_thread();
    }
    return SHARED_WINDOW + (unsigned)offset;
}

const void* emu_shared_place(unsigned address) { return dynamic_shared + (int)(address - SHARED_WINDOW); }

void emu_copy_async(unsigned to, const void* from, int bytes, int given, void* site)
{
    constexpr int GARBAGE = 0xCB;
    Copy copy{(uintptr_t)emu_shared_place(to), {}, (unsigned)bytes, current->groups};
    if (to % bytes || (uintptr_t)from % bytes || given < 0 || given > bytes) {
        report("misaligned-access", site, nullptr, "a copy of %d bytes, %d of them given, from %p to shared address %u",
               bytes, given, from, to);
        end_thread();
    }
    checker_copy_begins(copy.to, bytes, (uintptr_t)from, given, (uintptr_t)site);
    memcpy(copy.bytes, from, given);
    memset((void*)copy.to, GARBAGE, bytes);
    current->copies.push_back(copy);
}

void emu_commit_copies(void) { ++current->groups; }

void emu_wait_copies(int pending, void* site)
{
    if (current->groups > (unsigned)pending) end_copies(current->groups - pending, (uintptr_t)site);
}
}
