// C = A B for matrices as they lie, with bias, ReLU and ReLU's slope; a row of bias gradients; sums in fixed order.
#include "common.cuh"
#include "tile.cuh"

// c (rows, cols) = a (rows, terms) b (terms, cols); the numbers of a row or column lie a_row, a_term, ... apart.
// ones: row of c that becomes the sums of b's columns (a has one row less then), or -1.
template <typename T, typename Acc, int WIDTH>
__global__ void gemm(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                     const T* __restrict__ mask, T* __restrict__ c, Acc* __restrict__ partial, int rows, int cols,
                     int terms, int span, int a_row, int a_term, int b_term, int b_col, int ones, int has_bias,
                     int relu, int has_mask)
{
    const Matrix<T, Acc> left = {a, ones >= 0 ? rows - 1 : rows, terms, a_row, a_term, ones, a_term == 1};
    const Matrix<T, Acc> right = {b, cols, terms, b_col, b_term, -1, b_term == 1};
    const Target<T, Acc> target = {c,        partial,       bias,          mask,      nullptr, rows, cols,
                                   has_bias != 0, has_mask != 0, relu != 0, false};
    work_out_tile<T, Acc, WIDTH>(left, right, target, terms, span);
}

// c = the sum of `parts` partial products, finished as by gemm; total = c.size. One thread an element.
template <typename T, typename Acc, typename Index>
__global__ void sum_parts(const Acc* __restrict__ partial, const T* __restrict__ bias, const T* __restrict__ mask,
                          T* __restrict__ c, Index total, int parts, int cols, int has_bias, int relu, int has_mask)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    Acc sum = static_cast<Acc>(0);
    for (int part = 0; part < parts; ++part) sum += partial[part * total + number];
    const Target<T, Acc> target = {c,        nullptr,       bias,          mask,      nullptr, 0, cols,
                                   has_bias != 0, has_mask != 0, relu != 0, false};
    c[number] = static_cast<T>(finished(target, number, static_cast<int>(number % cols), sum));
}
