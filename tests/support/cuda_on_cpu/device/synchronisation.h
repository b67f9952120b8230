// Barriers, fences, shuffles, votes and warp reductions.
#pragma once

#define __syncthreads() emu_barrier(EMU_SYNC, 0, nullptr, __LINE__)
#define EMU_VOTING_BARRIER(kind, vote) \
    ({ int emu_result; emu_barrier(kind, (vote) != 0, &emu_result, __LINE__); emu_result; })
#define __syncthreads_count(vote) EMU_VOTING_BARRIER(EMU_SYNC_COUNT, vote)
#define __syncthreads_and(vote) EMU_VOTING_BARRIER(EMU_SYNC_AND, vote)
#define __syncthreads_or(vote) EMU_VOTING_BARRIER(EMU_SYNC_OR, vote)

EMU_INLINE void __threadfence_block() { emu_fence(0); }
EMU_INLINE void __threadfence() { emu_fence(1); }
EMU_INLINE void __threadfence_system() { emu_fence(2); }
EMU_INLINE void __trap() { emu_fail("trap", "__trap() was called"); }
EMU_INLINE void __nanosleep(unsigned) { emu_yield(); }
EMU_INLINE long long clock64() { return 0; }
EMU_INLINE unsigned __activemask() { return emu_activemask(); }

EMU_INLINE void __syncwarp(unsigned mask = 0xffffffffu)
{
    emu_warp(EMU_SYNCWARP, mask, nullptr, 0, 0, 32);
}

#define EMU_SHUFFLE_FUNCTION(name, collective)                                       \
    template <typename T>                                                            \
    EMU_INLINE T name(unsigned mask, T value, int argument, int width = 32)          \
    {                                                                                \
        static_assert(sizeof(T) <= 16, "a shuffle moves at most 16 bytes");          \
        emu_warp(collective, mask, &value, sizeof(T), argument, width);              \
        return value;                                                                \
    }
EMU_SHUFFLE_FUNCTION(__shfl_sync, EMU_SHUFFLE)
EMU_SHUFFLE_FUNCTION(__shfl_up_sync, EMU_SHUFFLE_UP)
EMU_SHUFFLE_FUNCTION(__shfl_down_sync, EMU_SHUFFLE_DOWN)
EMU_SHUFFLE_FUNCTION(__shfl_xor_sync, EMU_SHUFFLE_XOR)

#define EMU_VOTE_FUNCTION(type, name, collective)         \
    EMU_INLINE type name(unsigned mask, int predicate)    \
    {                                                     \
        type value = predicate != 0;                      \
        emu_warp(collective, mask, &value, 4, 0, 32);     \
        return value;                                     \
    }
EMU_VOTE_FUNCTION(unsigned, __ballot_sync, EMU_BALLOT)
EMU_VOTE_FUNCTION(int, __any_sync, EMU_ANY)
EMU_VOTE_FUNCTION(int, __all_sync, EMU_ALL)

#define EMU_REDUCE_FUNCTION(type, name, collective)       \
    EMU_INLINE type name(unsigned mask, type value)       \
    {                                                     \
        emu_warp(collective, mask, &value, 4, 0, 32);     \
        return value;                                     \
    }
EMU_REDUCE_FUNCTION(int, __reduce_add_sync, EMU_REDUCE_ADD)
EMU_REDUCE_FUNCTION(int, __reduce_min_sync, EMU_REDUCE_MIN)
EMU_REDUCE_FUNCTION(int, __reduce_max_sync, EMU_REDUCE_MAX)
EMU_REDUCE_FUNCTION(unsigned, __reduce_and_sync, EMU_REDUCE_AND)
EMU_REDUCE_FUNCTION(unsigned, __reduce_or_sync, EMU_REDUCE_OR)
EMU_REDUCE_FUNCTION(unsigned, __reduce_xor_sync, EMU_REDUCE_XOR)
