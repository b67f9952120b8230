// Max and average pooling of NHWC images, forward and backward.
// One thread owns one element of the result, channels fastest; the backward passes gather, so they need no atomics.
#include "common.cuh"
#include "window.cuh"

// y = maximum of the window, argmax = i * kernel_cols + j of its first maximum in row-major order.
// The first NaN wins over everything; padding counts as minus infinity and is never chosen. total = y.size.
template <typename T, typename Acc, typename Index>
__global__ void max_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, unsigned char* __restrict__ argmax,
                                   Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> out = place_of(number, out_rows, out_cols, channels);

    Acc best = minus_infinity<Acc>();
    int winner = 0;
    bool found = false;
    for (int i = 0; i < kernel_rows; ++i) {
        const int row = out.row * stride_rows - pad_top + i * dilation_rows;
        if (row < 0 || row >= rows) continue;
        for (int j = 0; j < kernel_cols; ++j) {
            const int col = out.col * stride_cols - pad_left + j * dilation_cols;
            if (col < 0 || col >= cols) continue;
            const Acc value = static_cast<Acc>(x[((out.image * rows + row) * cols + col) * channels + out.channel]);
            if (!found || value > best || (value != value && best == best)) {
                found = true;
                best = value;
                winner = i * kernel_cols + j;
            }
        }
    }
    y[number] = static_cast<T>(best);
    argmax[number] = static_cast<unsigned char>(winner);
}

// dx of a pixel = sum of dy over the windows whose first maximum it is. total = dx.size.
template <typename T, typename Acc, typename Index>
__global__ void max_pool2d_backward(const T* __restrict__ dy, const unsigned char* __restrict__ argmax,
                                    T* __restrict__ dx, Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> in = place_of(number, rows, cols, channels);

    Acc sum = static_cast<Acc>(0);
    for (int i = 0; i < kernel_rows; ++i) {
        const int out_row = window_at(in.row + pad_top - i * dilation_rows, stride_rows, out_rows);
        if (out_row < 0) continue;
        for (int j = 0; j < kernel_cols; ++j) {
            const int out_col = window_at(in.col + pad_left - j * dilation_cols, stride_cols, out_cols);
            if (out_col < 0) continue;
            const Index source = ((in.image * out_rows + out_row) * out_cols + out_col) * channels + in.channel;
            if (argmax[source] == i * kernel_cols + j) sum += static_cast<Acc>(dy[source]);
        }
    }
    dx[number] = static_cast<T>(sum);
}

// y = sum over the window / (kernel_rows * kernel_cols); padding counts as zero. total = y.size.
template <typename T, typename Acc, typename Index>
__global__ void avg_pool2d_forward(const T* __restrict__ x, T* __restrict__ y, Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> out = place_of(number, out_rows, out_cols, channels);

    Acc sum = static_cast<Acc>(0);
    for (int i = 0; i < kernel_rows; ++i) {
        const int row = out.row * stride_rows - pad_top + i * dilation_rows;
        if (row < 0 || row >= rows) continue;
        for (int j = 0; j < kernel_cols; ++j) {
            const int col = out.col * stride_cols - pad_left + j * dilation_cols;
            if (col < 0 || col >= cols) continue;
            sum += static_cast<Acc>(x[((out.image * rows + row) * cols + col) * channels + out.channel]);
        }
    }
    y[number] = static_cast<T>(sum / static_cast<Acc>(kernel_rows * kernel_cols));
}

// dx of a pixel = sum of dy over the windows that hold it / (kernel_rows * kernel_cols). total = dx.size.
template <typename T, typename Acc, typename Index>
__global__ void avg_pool2d_backward(const T* __restrict__ dy, T* __restrict__ dx, Index total, WINDOW_PARAMETERS)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> in = place_of(number, rows, cols, channels);

    Acc sum = static_cast<Acc>(0);
    for (int i = 0; i < kernel_rows; ++i) {
        const int out_row = window_at(in.row + pad_top - i * dilation_rows, stride_rows, out_rows);
        if (out_row < 0) continue;
        for (int j = 0; j < kernel_cols; ++j) {
            const int out_col = window_at(in.col + pad_left - j * dilation_cols, stride_cols, out_cols);
            if (out_col < 0) continue;
            sum += static_cast<Acc>(dy[((in.image * out_rows + out_row) * out_cols + out_col) * channels + in.channel]);
        }
    }
    dx[number] = static_cast<T>(sum / static_cast<Acc>(kernel_rows * kernel_cols));
}
