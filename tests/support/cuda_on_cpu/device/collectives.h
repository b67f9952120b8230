// Names that kernels (device/) and the runtime (runtime/) share.
#pragma once

enum EmuBarrier { EMU_SYNC, EMU_SYNC_COUNT, EMU_SYNC_AND, EMU_SYNC_OR };

enum EmuCollective {
    EMU_SYNCWARP,
    EMU_SHUFFLE, EMU_SHUFFLE_UP, EMU_SHUFFLE_DOWN, EMU_SHUFFLE_XOR,
    EMU_BALLOT, EMU_ANY, EMU_ALL,
    EMU_REDUCE_ADD, EMU_REDUCE_MIN, EMU_REDUCE_MAX, EMU_REDUCE_AND, EMU_REDUCE_OR, EMU_REDUCE_XOR,
    EMU_LDMATRIX, EMU_LDMATRIX_TRANS,
    EMU_MMA_TF32, EMU_MMA_BF16, EMU_MMA_F16,
};

// A lane's share of a tensor-core product: the sums come back in c.
struct EmuFragments {
    float c[4];
    unsigned a[4], b[2];
};

// A lane's share of an ldmatrix: the row of 16 bytes that it has read, then its words of the four matrices.
struct alignas(16) EmuMatrices {
    unsigned word[4];
};

extern "C" {
// Waits until every thread of the block has come; `line` tells two barriers apart.
void emu_barrier(int kind, int vote, int* result, int line);
// Waits until every lane of `mask` has come, then replaces *value by the lane's result.
void emu_warp(int collective, unsigned mask, void* value, int bytes, int argument, int width);
// Books an atomic access; the caller does the read-modify-write itself (one OS thread).
void emu_atomic(const void* address, int bytes, void* site);
// Asynchronous copies: what a thread asks for is there when it has waited, not before and not later.
void emu_copy_async(unsigned to, const void* from, int bytes, int given, void* site);
void emu_commit_copies(void);
void emu_wait_copies(int pending, void* site);
// Products of a warpgroup: 64 rows, `columns`, 16 terms, of factors that descriptors tell; a thread has half of the
// columns' number of sums.
void emu_group_multiply(int kind, int columns, float* const* sums, unsigned long long a, unsigned long long b,
                        int a_by_lines, int b_by_lines, void* site);
void emu_group_fence(void);
void emu_group_commit(void);
void emu_group_wait(int pending, void* site);
void emu_show_to_products(void);
// Addresses of dynamic shared memory as PTX has them, in 32 bits.
unsigned emu_shared_address(const void* place, void* site);
const void* emu_shared_place(unsigned address);
void emu_fence(int scope);  // 0 block, 1 device, 2 system
void emu_fail(const char* kind, const char* text) __attribute__((noreturn));
void* emu_dynamic_shared(void);
unsigned emu_activemask(void);
void emu_yield(void);
}
