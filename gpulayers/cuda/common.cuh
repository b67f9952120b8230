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
//   VEC    elements a thread moves at once (16 bytes, or 1)

// VEC neighbours, loaded and stored by one instruction.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
    T item[VEC];
};

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

// Where an element of an (images, rows, cols, channels) array lies; channel counts groups of the innermost axis.
template <typename Index>
struct Place {
    Index image;
    int row, col, channel;
};

template <typename Index>
__device__ __forceinline__ Place<Index> place_of(Index number, int rows, int cols, int channels)
{
    Place<Index> place;
    Index rest = number / channels;
    place.channel = static_cast<int>(number - rest * channels);
    const Index line = rest / cols;
    place.col = static_cast<int>(rest - line * cols);
    place.image = line / rows;
    place.row = static_cast<int>(line - place.image * rows);
    return place;
}

// The window, along one axis, with a tap `offset` = position + padding - tap * dilation away from the first window's
// start: its number, or -1 if no window starts there.
__device__ __forceinline__ int window_at(int offset, int stride, int windows)
{
    if (offset < 0) return -1;
    const int window = offset / stride;
    return window * stride == offset && window < windows ? window : -1;
}

// The parameters of every kernel over windows, in table.WINDOW's order; dilation is the spacing of the taps (1 = dense).
#define WINDOW_PARAMETERS                                                                                          \
    int rows, int cols, int channels, int out_rows, int out_cols, int kernel_rows, int kernel_cols,                \
        int stride_rows, int stride_cols, int pad_top, int pad_left, int dilation_rows, int dilation_cols
