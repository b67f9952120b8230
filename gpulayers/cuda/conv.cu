// Convolution of NHWC images and its two gradients, each a product whose factors are those of conv.cuh.
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

// z (pixels, filters) = windows of x times w, plus bias, activation; pooled: maxima of 2 x 2 pixels and their winners. w has
// `depth` channels; those that x has more are zeros.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_forward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias,
                               T* __restrict__ z, unsigned char* __restrict__ winners, int pixels, int filters,
                               int has_bias, int activated, int pooled, int depth, WINDOW_PARAMETERS)
{
    SPECIALISE;
    const int taps = kernel_rows * kernel_cols * channels;
    const PixelsByTaps<T, Acc> left = {{x, GEOMETRY, pooled != 0}, pixels, Terms()};
    const FiltersByTaps<T, Acc> right = {w, channels, depth, filters, Lines()};
    const Target<T, Acc> target = {z,       nullptr, bias,          nullptr, winners,   pixels,
                                   filters, has_bias != 0, false, activated != 0, pooled != 0};
    work_out<T, Acc, Tile>(share_of_block(), left, right, target, taps, taps);
}

// dx (pixels, channels) = what the windows hand back to the inputs.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_input_grad(const T* __restrict__ dz, const T* __restrict__ w, T* __restrict__ dx, int pixels,
                                  int filters, WINDOW_PARAMETERS)
{
    const int taps = kernel_rows * kernel_cols * filters;
    const InputsByTaps<T, Acc> left = {{dz, nullptr, GEOMETRY, filters, false}, pixels, Terms()};
    const ChannelsByTaps<T, Acc> right = {w, channels, filters, Terms()};
    const Target<T, Acc> target = {dx,       nullptr, nullptr, nullptr, nullptr, pixels,
                                   channels, false,   false,   false,   false};
    work_out<T, Acc, Tile>(share_of_block(), left, right, target, taps, taps);
}

// dw (taps * channels, filters) = windows of x, transposed, times dz; and, a row more, the bias's gradient.
template <typename T, typename Acc, typename Tile>
__global__ void conv2d_weight_grad(const T* __restrict__ x, const T* __restrict__ dz, T* __restrict__ dw,
                                   Acc* __restrict__ partial, int pixels, int filters, int span, int has_bias,
                                   WINDOW_PARAMETERS)
{
    const int taps = kernel_rows * kernel_cols * channels;
    const TapsByPixels<T, Acc> left = {{x, GEOMETRY, false}, taps, Lines()};
    const FiltersByPixels<T, Acc> right = {{dz, nullptr, GEOMETRY, filters, false}, Lines()};
    const Target<T, Acc> target = {dw,      partial, nullptr, nullptr, nullptr, has_bias ? taps + 1 : taps,
                                   filters, false,   false,   false,   false};
    work_out<T, Acc, Tile>(share_of_block(), left, right, target, pixels, span);
}
