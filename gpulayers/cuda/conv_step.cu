// Convolutions of a planned training step, with what stands beside them there: forward with the moments that a batch
// normalisation behind them needs, and back in one launch for both gradients, with the sums that a normalisation
// before them needs.
#include "common.cuh"
#include "words.cuh"
#include "window.cuh"
#include "tile.cuh"
#include "fragments.cuh"
#include "copies.cuh"
#include "pipeline.cuh"
#include "warpgroup.cuh"
#include "group.cuh"
#include "large.cuh"
#include "conv.cuh"
#include "conv_gradient.cuh"
#include "rows.cuh"
#include "columns.cuh"
#include "norm.cuh"
#include "tile_sums.cuh"

// z (pixels, filters) = windows of x times w, plus bias; and its moments, see TakeMoments.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_moments(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* z,
                               Acc* each, unsigned* arrived, Acc* sums, Acc* squares, int pixels, int filters,
                               int members, WINDOW_PARAMETERS)
{
    int pooled = 0;  // SPECIALISE says so too
    SPECIALISE;
    const int taps = kernel_rows * kernel_cols * channels;
    const PixelsByTaps<T, Acc> left = {{x, GEOMETRY, pooled != 0}, pixels, Terms()};
    const Matrix<T, Acc, Lines> right = {w, filters, 1, filters, -1, Lines()};
    const Target<T, Acc> target = {z, nullptr, bias, nullptr, nullptr, pixels, filters, true, false, false, false};
    const TakeMoments<Tile, Acc> moments = {
        {each, arrived, static_cast<int>(gridDim.x), members}, sums, squares};
    work_out<T, Acc, Tile>(share_of_block(), left, right, target, taps, taps, moments);
}

// The way back, both products at once. The first `weight_blocks` blocks work out grads (parts, taps * channels + 1,
// filters): windows of x, transposed, times dz, the bias's gradient below it. The others work out dx: what the windows
// hand back to the inputs, times [x > 0] if masked, + side if there is one; and if has_norm, sums of it, see
// TakeGradients: x is then what a normalisation of norm_x has put out.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_backward(const T* __restrict__ x, const T* __restrict__ dz,
                                const unsigned char* __restrict__ winners, const T* __restrict__ w,
                                const T* __restrict__ side, Acc* __restrict__ grads, T* dx,
                                const T* __restrict__ norm_x, const unsigned char* __restrict__ norm_winners,
                                const T* __restrict__ scaler, const T* __restrict__ intercept,
                                const Acc* __restrict__ shift, const Acc* __restrict__ inverse, Acc* each,
                                unsigned* arrived, Acc* sums, int outputs, int inputs, int filters, int span,
                                int parts, int weight_blocks, int masked, int has_side, int pooled, int has_norm,
                                int norm_rows, int norm_cols, int norm_relu, int norm_pooled, int members,
                                WINDOW_PARAMETERS)
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
                                       false,   false, false,   false,   nullptr, true};
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
            {picture, norm_x, norm_winners, scaler, intercept, shift, inverse, norm_relu != 0}};
        work_out<T, Acc, Tile>(share, left, right, target, taps, taps, norm);
    }
}
