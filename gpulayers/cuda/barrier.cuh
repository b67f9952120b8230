// A barrier of blocks that all run at the same time (a cooperative launch). The highest bit of `arrived` changes when the
// last one comes, since all of them add up to 2^31: nothing is to be reset, not even between launches. The fences make
// what any block wrote before `arrive` visible to every block behind `wait`, which takes what `arrive` returned. One of
// the `blocks` is the `first`.

__device__ unsigned arrive(unsigned* arrived, bool first, unsigned blocks)
{
    __syncthreads();
    if (threadIdx.x > 0) return 0u;
    __threadfence();
    return atomicAdd(arrived, first ? 0x80000000u - (blocks - 1u) : 1u);
}

// Leaves the multiprocessor to others for a while; before Volta there is no such thing.
__device__ void pause()
{
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700
    __nanosleep(20);
#endif
}

__device__ void wait(unsigned* arrived, unsigned before)
{
    if (threadIdx.x == 0) {
        while (((before ^ atomicAdd(arrived, 0u)) & 0x80000000u) == 0u) pause();
        __threadfence();
    }
    __syncthreads();
}
