// Convolutions of small images in planned training steps: a block has one example after the other in its shared memory,
// and goes over it as the kernel that trains a whole network does (mega_conv.cuh). A matrix product of so few channels and
// filters would spend its time on finding its factors.
#include "common.cuh"
#include "activation_functions.cuh"
#include "philox.cuh"
#include "mega_common.cuh"
#include "mega_drop.cuh"
#include "mega_conv.cuh"

// The constants of a convolution (example_conv.py), compiled into the kernel: -DSPECIALISE=rows=14,... These are those of
// two by two pixels, for who compiles all kernels.
#ifndef SPECIALISE
#define SPECIALISE                                                                                                       \
    rows = 2, cols = 2, channels = 1, filters = 1, kernel_rows = 1, kernel_cols = 1, stride_rows = 1, stride_cols = 1,   \
    dilation_rows = 1, dilation_cols = 1, top = 0, left = 0, input_cols = 2, tile_rows = 2, tile_cols = 2,               \
    tiles_down = 1, tiles_across = 1, out_rows = 1, out_cols = 1, pooled = 1, group = 1, shares = 1, parameters = 2,     \
    spread_top = 0, spread_left = 0, spread_rows = 2, spread_cols = 2, back_rows = 2, back_cols = 2, vector = 1,         \
    input = 0, input_size = 4, weights = 4, bias = 8, output = 12, winners = 16, gradient = 12, sums = 20,               \
    gradient_before = 24, spread = 28, activation = 0, before = 0, output_top = 0, output_left = 0, output_cols = 1,     \
    partial = 0, dropped = 0
#endif

struct Stage {
    static constexpr int SPECIALISE;
    static constexpr int image_size = rows * cols * channels, output_size = out_rows * out_cols * filters;
};

template <typename T>
__device__ __forceinline__ void load_example(float* shared, const T* image)
{
    constexpr int LINE = Stage::cols * Stage::channels;
    for (int i = this_thread(); i < Stage::image_size; i += THREADS) {
        const int row = i / LINE + Stage::top;
        const int place = row * Stage::input_cols * Stage::channels + Stage::left * Stage::channels + i % LINE;
        shared[Stage::input + place] = static_cast<float>(image[i]);
    }
}

template <typename T>
__device__ __forceinline__ void load_filters(float* shared, const T* w)
{
    for (int i = this_thread(); i < Stage::parameters - Stage::filters; i += THREADS)
        shared[Stage::weights + i] = static_cast<float>(w[i]);
}

__device__ __forceinline__ void clear(float* part, int size)
{
    for (int i = this_thread(); i < size; i += THREADS) part[i] = 0.0f;
}

__device__ __forceinline__ unsigned char* winners_in(float* shared)
{
    return reinterpret_cast<unsigned char*>(shared + Stage::winners);
}

// z = windows of x times w, plus bias, and the activation; pooled: maxima and their winners, 4 where ReLU left zero.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    example_conv_forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ z,
                         unsigned char* __restrict__ winners, int examples)
{
    extern __shared__ __align__(16) float shared[];
    clear(shared + Stage::input, Stage::input_size);
    load_filters(shared, w);
    if (this_thread() < Stage::filters)
        shared[Stage::bias + this_thread()] = static_cast<float>(bias[this_thread()]);
    __syncthreads();
    for (int example = blockIdx.x; example < examples; example += gridDim.x) {
        load_example(shared, x + static_cast<long long>(example) * Stage::image_size);
        __syncthreads();
        conv_forward<Stage>(shared);
        __syncthreads();
        const long long first = static_cast<long long>(example) * Stage::output_size;
        for (int i = this_thread(); i < Stage::output_size; i += THREADS) {
            const float y = shared[Stage::output + i];
            z[first + i] = static_cast<T>(y);
            if (!Stage::pooled) continue;
            const bool zero = Stage::activation == RELU && !(y > 0.0f);
            winners[first + i] = zero ? 4 : winners_in(shared)[i];
        }
    }
}

// What a block needs of an example on the way back: x and dz, with the winners of its pooling.
template <typename T>
__device__ __forceinline__ void load_gradient(float* shared, const T* x, const T* dz, const unsigned char* winners,
                                              int example)
{
    load_example(shared, x + static_cast<long long>(example) * Stage::image_size);
    const long long first = static_cast<long long>(example) * Stage::output_size;
    for (int i = this_thread(); i < Stage::output_size; i += THREADS) {
        float gradient = static_cast<float>(dz[first + i]);
        if (Stage::pooled) {
            const unsigned char winner = winners[first + i];
            if (winner == 4) gradient = 0.0f;
            winners_in(shared)[i] = winner % 4;
        }
        shared[Stage::gradient + i] = gradient;
    }
    __syncthreads();
}

// The way back, each block of two kinds with an example after the other. The first `weight_blocks` have sums of the
// gradients of w and bias, each its part of grads (parts, parameters); the others write dx, what the windows hand back to
// the inputs, times the slope of the activation before.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    example_conv_backward(const T* __restrict__ x, const T* __restrict__ dz, const unsigned char* __restrict__ winners,
                          const T* __restrict__ w, float* __restrict__ grads, T* __restrict__ dx, int examples,
                          int weight_blocks)
{
    extern __shared__ __align__(16) float shared[];
    const int block = static_cast<int>(blockIdx.x), others = static_cast<int>(gridDim.x) - weight_blocks;
    clear(shared + Stage::input, Stage::input_size);
    if (block < weight_blocks) {
        clear(shared + Stage::sums, Stage::shares * Stage::parameters);
        __syncthreads();
        for (int example = block; example < examples; example += weight_blocks) {
            load_gradient(shared, x, dz, winners, example);
            conv_weight_sums<Stage>(shared);
            __syncthreads();
        }
        conv_give_sums<Stage>(shared, grads + static_cast<long long>(block) * Stage::parameters);
        return;
    }
    clear(shared + Stage::spread, Stage::spread_rows * Stage::spread_cols * Stage::filters);
    load_filters(shared, w);
    __syncthreads();
    for (int example = block - weight_blocks; example < examples; example += others) {
        load_gradient(shared, x, dz, winners, example);
        conv_spread<Stage>(shared);
        __syncthreads();
        conv_input_grad<Stage>(shared);
        __syncthreads();
        const long long first = static_cast<long long>(example) * Stage::image_size;
        for (int i = this_thread(); i < Stage::image_size; i += THREADS)
            dx[first + i] = static_cast<T>(shared[Stage::gradient_before + i]);
    }
}
