// Convolutions of a planned training step, with what stands beside them there: forward with the moments that a batch
// normalisation behind them needs, and back in one launch for both gradients, with the sums that a normalisation
// before them needs; the gradient before a pooling; and images with more channels.
#include "common.cuh"
#include "words.cuh"
#include "activation_functions.cuh"
#include "window.cuh"
#include "tile.cuh"
#include "fragments.cuh"
#include "copies.cuh"
#include "stages.cuh"
#include "pipeline.cuh"
#include "warpgroup.cuh"
#include "group.cuh"
#include "large.cuh"
#include "conv.cuh"
#include "conv_notes.cuh"
#include "conv_gradient.cuh"
#include "rows.cuh"
#include "columns.cuh"
#include "norm.cuh"
#include "tile_sums.cuh"

// The gradient of what a 2 x 2 pooling takes, dz (images, rows, cols, filters), from that of what it gives, dy (images,
// rows / 2, cols / 2, filters), and the number of each window's winner (4: none). A thread has a window and VEC filters;
// rows and columns that pooling leaves out are windows of their own, without a winner. total = threads.
template <typename T, typename Index, int VEC>
__global__ void unpool2d(const T* __restrict__ dy, const unsigned char* __restrict__ winners, T* __restrict__ dz,
                         Index total, int rows, int cols, int filters)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Place<Index> window = place_of(number, (rows + 1) / 2, (cols + 1) / 2, filters / VEC);
    const int filter = window.channel * VEC;
    Pack<T, VEC> gradient = {};
    Pack<unsigned char, VEC> winner = {};
    const bool pooled = window.row < rows / 2 && window.col < cols / 2;
    if (pooled) {
        const Index line = window.image * (rows / 2) + window.row;
        const Index place = (line * (cols / 2) + window.col) * filters + filter;
        gradient = *reinterpret_cast<const Pack<T, VEC>*>(dy + place);
        winner = *reinterpret_cast<const Pack<unsigned char, VEC>*>(winners + place);
    }
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
        const int row = 2 * window.row + quarter / 2, col = 2 * window.col + quarter % 2;
        if (row >= rows || col >= cols) continue;
        Pack<T, VEC> out;
#pragma unroll
        for (int i = 0; i < VEC; ++i)
            out.item[i] = pooled && winner.item[i] == quarter ? gradient.item[i] : static_cast<T>(0.0f);
        const Index line = window.image * rows + row;
        *reinterpret_cast<Pack<T, VEC>*>(dz + ((line * cols + col) * filters + filter)) = out;
    }
}

// Images with more channels, which are zeros: (pixels, channels) to (pixels, padded). A thread has VEC channels; total =
// threads.
template <typename T, typename Index, int VEC>
__global__ void pad_channels(const T* __restrict__ x, T* __restrict__ y, Index total, int channels, int padded)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index pixel = number / (padded / VEC);
    const int first = static_cast<int>(number - pixel * (padded / VEC)) * VEC;
    Pack<T, VEC> out;
#pragma unroll
    for (int i = 0; i < VEC; ++i)
        out.item[i] = first + i < channels ? x[pixel * channels + first + i] : static_cast<T>(0.0f);
    *reinterpret_cast<Pack<T, VEC>*>(y + (pixel * padded + first)) = out;
}

// z (pixels, filters) = windows of x times w, plus bias; and its moments, see TakeMoments. `depth` as in conv2d_forward.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_moments(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* z,
                               Acc* each, unsigned* arrived, Acc* sums, Acc* squares, int pixels, int filters,
                               int members, int depth, WINDOW_PARAMETERS)
{
    int pooled = 0;  // SPECIALISE says so too
    SPECIALISE;
    const int taps = kernel_rows * kernel_cols * channels;
    const PixelsByTaps<T, Acc> left = {{x, GEOMETRY, pooled != 0}, pixels, Terms()};
    const FiltersByTaps<T, Acc> right = {w, channels, depth, filters, Lines()};
    const Target<T, Acc> target = {z, nullptr, bias, nullptr, nullptr, pixels, filters, true, false, false, false};
    const TakeMoments<Tile, Acc> moments = {
        {each, arrived, static_cast<int>(gridDim.x), members}, sums, squares};
    work_out<T, Acc, Tile>(share_of_block(), left, right, target, taps, taps, moments);
}

// The way back, both products at once. The first `weight_blocks` blocks work out grads (parts, taps * depth + 1, filters):
// windows of x, transposed, times dz, the bias's gradient below it; w has `depth` channels, those that x has more are left
// out, and then there are no others. The others work out dx: what the windows hand back to the inputs, times the slope
// that x tells if masked, + side if there is one; and if has_norm, sums of it, see TakeGradients: x is then what a
// normalisation of norm_x has put out.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_backward(const T* __restrict__ x, const T* __restrict__ dz,
                                const unsigned char* __restrict__ winners, const T* __restrict__ w,
                                const T* __restrict__ side, Acc* __restrict__ grads, T* dx,
                                const T* __restrict__ norm_x, const unsigned char* __restrict__ norm_winners,
                                const T* __restrict__ scaler, const T* __restrict__ intercept,
                                const Acc* __restrict__ shift, const Acc* __restrict__ inverse, Acc* each,
                                unsigned* arrived, Acc* sums, int outputs, int inputs, int filters, int span,
                                int parts, int weight_blocks, int masked, int has_side, int pooled, int has_norm,
                                int norm_rows, int norm_cols, int norm_activated, int norm_pooled, int members,
                                int depth, WINDOW_PARAMETERS)
{
    SPECIALISE;
    const int block = static_cast<int>(blockIdx.x);
    if (block < weight_blocks) {
        const int taps = kernel_rows * kernel_cols * channels;
        const int down = (taps + Tile::HEIGHT) / Tile::HEIGHT;
        const int tile = block / parts;
        const Share share = {tile % down, tile / down, block % parts, parts};
        const TapsByPixels<T, Acc> left = {{x, GEOMETRY, pooled != 0}, taps, Lines()};
        const FiltersByPixels<T, Acc> right = {{dz, winners, GEOMETRY, filters, pooled != 0}, Lines()};
        const Target<T, Acc> target = {nullptr, grads, nullptr, nullptr, nullptr, taps + 1, filters,
                                       false,   false, false,   false,   nullptr, true,    channels,
                                       depth};
        work_out<T, Acc, Tile>(share, left, right, target, outputs, span);
    } else {
        const int taps = kernel_rows * kernel_cols * filters;
        const int down = (inputs + Tile::HEIGHT - 1) / Tile::HEIGHT;
        const int tile = block - weight_blocks;
        const Share share = {tile % down, tile / down, 0, 1};
        const InputsByTaps<T, Acc> left = {{dz, winners, GEOMETRY, filters, pooled != 0}, inputs, Terms()};
        const ChannelsByTaps<T, Acc> right = {w, channels, filters, Terms()};
        const Target<T, Acc> target = {dx,    nullptr,     nullptr, x,     nullptr,                    inputs, channels,
                                       false, masked != 0, false,   false, has_side ? side : nullptr};
        const Picture picture = {norm_rows, norm_cols, norm_pooled != 0};
        const TakeGradients<Tile, T, Acc> norm = {
            {each, arrived, down, members},
            has_norm ? sums : nullptr,
            {picture, norm_x, norm_winners, scaler, intercept, shift, inverse, norm_activated != 0}};
        work_out<T, Acc, Tile>(share, left, right, target, taps, taps, norm);
    }
}
