// Shared by every source of this folder; compile.load_source puts this text in place of the #include.
// No standard header, CCCL or cooperative groups: they cost seconds of compile time.
#ifdef GPULAYERS_FLOAT16
#include <cuda_fp16.h>
#endif
#ifdef GPULAYERS_BFLOAT16
#include <cuda_bf16.h>
#endif

// Template parameters used throughout:
//   T      storage type: float, double, __half, __nv_bfloat16
//   Acc    arithmetic type: float, or double for double
//   Index  int while every element number fits 32 bits, else long long

// Number of this thread in a one-dimensional grid.
template <typename Index>
__device__ __forceinline__ Index thread_number()
{
    return static_cast<Index>(blockIdx.x) * static_cast<Index>(blockDim.x) + static_cast<Index>(threadIdx.x);
}

// NVRTC has no INFINITY and no NAN.
template <typename Acc>
__device__ __forceinline__ Acc minus_infinity()
{
    return static_cast<Acc>(__int_as_float(static_cast<int>(0xff800000u)));
}

template <typename Acc>
__device__ __forceinline__ Acc not_a_number()
{
    return static_cast<Acc>(__int_as_float(0x7fc00000));
}
