// LANES threads share a row: a warp for short rows (a block of 256 holds 8 of them), a whole block for long ones.

// No __launch_bounds__: with it ptxas 13 aims at 48 registers and spills some of the double instances.
#define BLOCK 256

template <typename Acc>
__device__ __forceinline__ Acc larger(Acc a, Acc b)
{
    return a > b ? a : b;
}

// Sum or maximum over the LANES threads of a row; every one of them gets the result. `warps` is shared memory.
template <int LANES, bool MAXIMUM, typename Acc>
__device__ __forceinline__ Acc reduce_row(Acc value, Acc* warps)
{
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const Acc other = __shfl_xor_sync(0xffffffffu, value, distance);
        value = MAXIMUM ? larger(value, other) : value + other;
    }
    if (LANES > 32) {
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
        __syncthreads();
        value = warps[0];
#pragma unroll
        for (int warp = 1; warp < BLOCK / 32; ++warp) value = MAXIMUM ? larger(value, warps[warp]) : value + warps[warp];
        __syncthreads();  // the next reduction writes the same words
    }
    return value;
}

// Number of this thread's row; with whole blocks a row it is never past the end.
template <typename Index, int LANES>
__device__ __forceinline__ Index row_number()
{
    return static_cast<Index>(blockIdx.x) * (BLOCK / LANES) + static_cast<int>(threadIdx.x) / LANES;
}
