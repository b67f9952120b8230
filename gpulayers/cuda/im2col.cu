// Windows of an NHWC image to rows of a matrix (im2col), and its adjoint (col2im).
//
// columns has one row an output pixel: (n * out_rows * out_cols, kernel_rows * kernel_cols * channels),
// taps in row-major order, channels fastest. So neighbouring threads touch neighbouring channels on both sides.
#include "common.cuh"
#include "words.cuh"
#include "window.cuh"

// One thread copies VEC channels of one tap; padding reads as zero. total = columns.size / VEC.
template <typename T, typename Index, int VEC>
__global__ void im2col(const T* __restrict__ x, T* __restrict__ columns, Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> tap = place_of(number, kernel_rows, kernel_cols, channels / VEC);
    const Place<Index> out = place_of(tap.image, out_rows, out_cols, 1);
    const int row = out.row * stride_rows - pad_top + tap.row * dilation_rows;
    const int col = out.col * stride_cols - pad_left + tap.col * dilation_cols;

    Pack<T, VEC> value;
    if (row >= 0 && row < rows && col >= 0 && col < cols) {
        const Index source = ((out.image * rows + row) * cols + col) * channels + tap.channel * VEC;
        value = *reinterpret_cast<const Pack<T, VEC>*>(x + source);
    } else {
#pragma unroll
        for (int v = 0; v < VEC; ++v) value.item[v] = static_cast<T>(0.f);
    }
    *reinterpret_cast<Pack<T, VEC>*>(columns + number * VEC) = value;
}

// One thread gathers VEC channels of one input pixel from the windows that hold it, taps in row-major order:
// no atomics, bitwise repeatable. total = x.size / VEC.
template <typename T, typename Acc, typename Index, int VEC>
__global__ void col2im_gather(const T* __restrict__ columns, T* __restrict__ x, Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> in = place_of(number, rows, cols, channels / VEC);

    Acc sum[VEC];
#pragma unroll
    for (int v = 0; v < VEC; ++v) sum[v] = static_cast<Acc>(0);
    for (int i = 0; i < kernel_rows; ++i) {
        const int out_row = window_at(in.row + pad_top - i * dilation_rows, stride_rows, out_rows);
        if (out_row < 0) continue;
        for (int j = 0; j < kernel_cols; ++j) {
            const int out_col = window_at(in.col + pad_left - j * dilation_cols, stride_cols, out_cols);
            if (out_col < 0) continue;
            const Index pixel = (in.image * out_rows + out_row) * out_cols + out_col;
            const Index source = ((pixel * kernel_rows + i) * kernel_cols + j) * channels + in.channel * VEC;
            const Pack<T, VEC> value = *reinterpret_cast<const Pack<T, VEC>*>(columns + source);
#pragma unroll
            for (int v = 0; v < VEC; ++v) sum[v] += static_cast<Acc>(value.item[v]);
        }
    }
    Pack<T, VEC> result;
#pragma unroll
    for (int v = 0; v < VEC; ++v) result.item[v] = static_cast<T>(sum[v]);
    *reinterpret_cast<Pack<T, VEC>*>(x + number * VEC) = result;
}

// The scatter-add form: one thread adds one entry of columns to its pixel of x, which starts as zeros.
// The order of the additions, and with it the last bits, differs from run to run. total = columns.size.
template <typename T, typename Acc, typename Index>
__global__ void col2im_scatter(const T* __restrict__ columns, Acc* __restrict__ x, Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> tap = place_of(number, kernel_rows, kernel_cols, channels);
    const Place<Index> out = place_of(tap.image, out_rows, out_cols, 1);
    const int row = out.row * stride_rows - pad_top + tap.row * dilation_rows;
    const int col = out.col * stride_cols - pad_left + tap.col * dilation_cols;
    if (row < 0 || row >= rows || col < 0 || col >= cols) return;
    const Index target = ((out.image * rows + row) * cols + col) * channels + tap.channel;
    atomicAdd(x + target, static_cast<Acc>(columns[number]));
}
