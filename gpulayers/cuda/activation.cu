// Bias and activation in one pass, the way back, and the bias gradient.
#include "common.cuh"
#include "activation_functions.cuh"

// z += bias (along the last axis), in place. One thread an element; total = z.size.
template <typename T, typename Acc, typename Index>
__global__ void bias_add(T* __restrict__ z, const T* __restrict__ bias, Index total, int channels)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    z[number] = static_cast<T>(static_cast<Acc>(z[number]) + static_cast<Acc>(bias[number % channels]));
}

// z = max(z + bias, 0), in place; NaN stays NaN.
template <typename T, typename Acc, typename Index>
__global__ void bias_relu(T* __restrict__ z, const T* __restrict__ bias, Index total, int channels)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc sum = static_cast<Acc>(z[number]) + static_cast<Acc>(bias[number % channels]);
    z[number] = static_cast<T>(activation_value(RELU, sum, sum, sum));
}

// z += bias, y = act(z): of the stored, rounded z, so that the backward pass sees the same one.
template <typename T, typename Acc, typename Index>
__global__ void bias_activation(T* __restrict__ z, const T* __restrict__ bias, T* __restrict__ y, Index total,
                                int channels, int act, Acc alpha, Acc beta)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const T sum = static_cast<T>(static_cast<Acc>(z[number]) + static_cast<Acc>(bias[number % channels]));
    z[number] = sum;
    y[number] = static_cast<T>(activation_value(act, static_cast<Acc>(sum), alpha, beta));
}

// y = act(z)
template <typename T, typename Acc, typename Index>
__global__ void activation_forward(const T* __restrict__ z, T* __restrict__ y, Index total, int act, Acc alpha, Acc beta)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    y[number] = static_cast<T>(activation_value(act, static_cast<Acc>(z[number]), alpha, beta));
}

// dz = dy * act'(z)
template <typename T, typename Acc, typename Index>
__global__ void activation_backward(const T* __restrict__ dy, const T* __restrict__ z, T* __restrict__ dz, Index total,
                                    int act, Acc alpha, Acc beta)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc slope = activation_slope(act, static_cast<Acc>(z[number]), alpha, beta);
    dz[number] = static_cast<T>(static_cast<Acc>(dy[number]) * slope);
}

// The same from y = act(z), for the functions whose value tells their slope.
template <typename T, typename Acc, typename Index>
__global__ void activation_backward_by_value(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dz,
                                             Index total, int act, Acc alpha, Acc beta)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc slope = slope_at_value(act, static_cast<Acc>(y[number]), alpha, beta);
    dz[number] = static_cast<T>(static_cast<Acc>(dy[number]) * slope);
}

#define SUM_BLOCK 256

// Sums of the columns of `source` (rows, channels), deterministic: no atomics, a fixed order for a given launch.
// A block of 256 threads takes `width` columns (a power of two up to 32, so that a warp reads whole lines) and every
// gridDim.y-th group of 256 / width rows; block row k writes row k of `sums` (gridDim.y, channels). A second launch
// with gridDim.y = 1 adds those up.
template <typename T, typename Out, typename Acc, typename Index>
__global__ void __launch_bounds__(SUM_BLOCK)
    column_sums(const T* __restrict__ source, Out* __restrict__ sums, Index rows, int channels, int width)
{
    __shared__ Acc part[SUM_BLOCK];
    const int thread = threadIdx.x;
    const int height = SUM_BLOCK / width;
    const int line = thread / width;
    const int column = static_cast<int>(blockIdx.x) * width + (thread - line * width);

    Acc sum = static_cast<Acc>(0);
    if (column < channels)
        for (Index row = static_cast<Index>(blockIdx.y) * height + line; row < rows; row += static_cast<Index>(gridDim.y) * height)
            sum += static_cast<Acc>(source[row * channels + column]);
    part[thread] = sum;
    __syncthreads();
    for (int lines = height / 2; lines > 0; lines /= 2) {
        if (line < lines) part[thread] += part[thread + lines * width];
        __syncthreads();
    }
    if (line == 0 && column < channels)
        sums[static_cast<Index>(blockIdx.y) * channels + column] = static_cast<Out>(part[thread]);
}
