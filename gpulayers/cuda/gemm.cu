// C = A B for matrices as they lie, with bias, activation and the slope of the one before; a row of bias gradients; sums in fixed order.
#include "common.cuh"
#include "words.cuh"
#include "activation_functions.cuh"
#include "tile.cuh"
#include "fragments.cuh"
#include "copies.cuh"
#include "stages.cuh"
#include "pipeline.cuh"
#include "warpgroup.cuh"
#include "group.cuh"
#include "large.cuh"

// c (rows, cols) = a (rows, terms) b (terms, cols); the numbers of a row or column lie a_row, a_term, ... apart.
// ones: row of c that becomes the sums of b's columns (a has one row less then), or -1. Rows, Cols: how a and b lie, by
// rows and by columns, as Matrix has it; tensor cores have to know.
template <typename T, typename Acc, typename Tile, typename Rows = bool, typename Cols = bool>
__global__ void gemm(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                     const T* __restrict__ mask, T* __restrict__ c, Acc* __restrict__ partial, int rows, int cols,
                     int terms, int span, int a_row, int a_term, int b_term, int b_col, int ones, int has_bias,
                     int activated, int has_mask)
{
    const Target<T, Acc> target = {c,        partial,       bias,          mask,      nullptr, rows, cols,
                                   has_bias != 0, has_mask != 0, activated != 0, false};
    const Matrix<T, Acc, Rows> left = {a, rows, a_row, a_term, ones, Rows(a_term == 1)};
    const Matrix<T, Acc, Cols> right = {b, cols, b_col, b_term, -1, Cols(b_term == 1)};
    work_out<T, Acc, Tile>(share_of_block(), left, right, target, terms, span);
}

// The same for many pairs of matrices, (rows, terms) and (terms, cols), as they are or transposed: those of a pair, which
// a layer of the grid's blocks multiplies, come one after another.
template <typename T, typename Acc, typename Tile, typename Rows = bool, typename Cols = bool>
__global__ void batched_gemm(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ c, int rows, int cols,
                             int terms, int a_transposed, int b_transposed)
{
    const long long item = blockIdx.z;
    const Target<T, Acc> target = {c + item * rows * cols, nullptr, nullptr, nullptr, nullptr, rows, cols,
                                   false,                  false,   false,   false};
    const Matrix<T, Acc, Rows> left = {a + item * rows * terms,  rows, a_transposed ? 1 : terms,
                                       a_transposed ? rows : 1,  -1,   Rows(!a_transposed)};
    const Matrix<T, Acc, Cols> right = {b + item * cols * terms, cols, b_transposed ? terms : 1,
                                        b_transposed ? 1 : cols, -1,   Cols(b_transposed != 0)};
    const Share share = {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), 0, 1};
    work_out<T, Acc, Tile>(share, left, right, target, terms, terms);
}

// The way back through a dense layer, both products at once: the first `weight_blocks` blocks work out grads, which is
// (parts, inputs + 1, outputs), x^T dz and the bias's gradient below it; the others dx = dz w^T, times the slope
// that x tells if masked.
template <typename T, typename Acc, typename Tile>
__global__ void dense_backward(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ dz,
                               Acc* __restrict__ grads, T* __restrict__ dx, int batch, int inputs, int outputs,
                               int span, int parts, int weight_blocks, int masked)
{
    const int block = static_cast<int>(blockIdx.x);
    // those with the longer sums first: the last ones to begin should be the short ones
    const bool inputs_first = outputs > span;
    const int input_blocks = static_cast<int>(gridDim.x) - weight_blocks;
    const int of_weights = inputs_first ? block - input_blocks : block;
    if (of_weights >= 0 && of_weights < weight_blocks) {
        const int down = (inputs + Tile::HEIGHT) / Tile::HEIGHT;
        const int tile = of_weights / parts;
        const Share share = {tile % down, tile / down, of_weights % parts, parts};
        const Matrix<T, Acc, Lines> left = {x, inputs, 1, inputs, inputs, Lines()};
        const Matrix<T, Acc, Lines> right = {dz, outputs, 1, outputs, -1, Lines()};
        const Target<T, Acc> target = {nullptr, grads, nullptr, nullptr, nullptr, inputs + 1, outputs,
                                       false,   false, false,   false,   nullptr, true};
        work_out<T, Acc, Tile>(share, left, right, target, batch, span);
    } else {
        const int down = (batch + Tile::HEIGHT - 1) / Tile::HEIGHT;
        const int tile = inputs_first ? block : block - weight_blocks;
        const Share share = {tile % down, tile / down, 0, 1};
        const Matrix<T, Acc, Terms> left = {dz, batch, outputs, 1, -1, Terms()};
        const Matrix<T, Acc, Terms> right = {w, inputs, outputs, 1, -1, Terms()};
        const Target<T, Acc> target = {dx,     nullptr, nullptr,     x,     nullptr, batch,
                                       inputs, false,   masked != 0, false, false};
        work_out<T, Acc, Tile>(share, left, right, target, outputs, outputs);
    }
}

// c = the sum of `parts` partial products, finished as by gemm; total = c.size. One thread an element.
template <typename T, typename Acc, typename Index>
__global__ void sum_parts(const Acc* __restrict__ partial, const T* __restrict__ bias, const T* __restrict__ mask,
                          T* __restrict__ c, Index total, int parts, int cols, int has_bias, int activated, int has_mask)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    Acc sum = static_cast<Acc>(0);
    for (int part = 0; part < parts; ++part) sum += partial[part * total + number];
    const Target<T, Acc> target = {c,        nullptr,       bias,          mask,      nullptr, 0, cols,
                                   has_bias != 0, has_mask != 0, activated != 0, false};
    c[number] = static_cast<T>(finished(target, number, static_cast<int>(number % cols), sum));
}
