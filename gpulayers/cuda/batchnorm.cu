// Batch normalisation of the columns of (rows, channels). Sums are taken in a fixed order: bitwise repeatable.
#include "common.cuh"
#include "rows.cuh"
#include "columns.cuh"

// Of each span: the sum of the distances from the column's first number, and that of the squared distances from the
// span's own mean. Both (channels, parts), parts = gridDim.y. Neither cancels where the mean is far from zero.
template <typename T, typename Acc, typename Index>
__global__ void column_moments(const T* __restrict__ x, Acc* __restrict__ sums, Acc* __restrict__ squares, Index rows,
                               int channels, int width, Index span)
{
    __shared__ Acc part[BLOCK];
    const Stretch<Index> share = stretch_of(rows, channels, width, span);
    const T* own = x + share.column;
    const Acc origin = static_cast<Acc>(share.last > share.first ? own[0] : T());
    const Acc count = static_cast<Acc>(rows_of<Index>(blockIdx.y, rows, span));
    const Distances<Acc> found = distances_of(own, origin, share.first, share.last, count, channels, width, part);
    if (share.writes) {
        const Index place = static_cast<Index>(share.column) * gridDim.y + blockIdx.y;
        sums[place] = found.sum;
        squares[place] = found.squares;
    }
}

// A block a column: the moments of all rows from those of the spans. shift is the distance of the mean from the
// column's first number; shift and inverse keep what rounding to T would lose.
// Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
template <typename T, typename Acc, typename Index>
__global__ void batchnorm_statistics(const T* __restrict__ x, const Acc* __restrict__ sums,
                                     const Acc* __restrict__ squares, Acc* __restrict__ shift,
                                     Acc* __restrict__ inverse, T* __restrict__ mean, T* __restrict__ var,
                                     T* __restrict__ inv_std, Index rows, Index span, int parts, Acc eps)
{
    __shared__ Acc warps[BLOCK / 32];
    const int column = blockIdx.x;
    const Index start = static_cast<Index>(column) * parts;

    Acc centre = static_cast<Acc>(0);
    for (int k = threadIdx.x; k < parts; k += BLOCK) centre += sums[start + k];
    centre = reduce_row<BLOCK, false>(centre, warps) / static_cast<Acc>(rows);
    Acc spread = static_cast<Acc>(0);
    for (int k = threadIdx.x; k < parts; k += BLOCK) {
        const Acc count = static_cast<Acc>(rows_of(k, rows, span));
        const Acc away = sums[start + k] / count - centre;
        spread += squares[start + k] + count * away * away;
    }
    spread = reduce_row<BLOCK, false>(spread, warps) / static_cast<Acc>(rows);
    if (threadIdx.x == 0) {
        const Acc scale = static_cast<Acc>(1) / sqrt(spread + eps);
        shift[column] = centre;
        inverse[column] = scale;
        mean[column] = static_cast<T>(static_cast<Acc>(x[column]) + centre);
        var[column] = static_cast<T>(spread);
        inv_std[column] = static_cast<T>(scale);
    }
}

// x_hat = (x - mean) / sqrt(var + eps), y = scaler * x_hat + intercept. One thread an element; total = x.size.
template <typename T, typename Acc, typename Index>
__global__ void batchnorm_forward(const T* __restrict__ x, const T* __restrict__ scaler,
                                  const T* __restrict__ intercept, const Acc* __restrict__ shift,
                                  const Acc* __restrict__ inverse, T* __restrict__ x_hat, T* __restrict__ y,
                                  Index total, int channels)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const int column = number % channels;
    const Acc centred = static_cast<Acc>(x[number]) - static_cast<Acc>(x[column]) - shift[column];
    const Acc value = centred * inverse[column];
    x_hat[number] = static_cast<T>(value);
    y[number] = static_cast<T>(static_cast<Acc>(scaler[column]) * value + static_cast<Acc>(intercept[column]));
}

// Of each span: the sums of dy and, after those of all channels, of dy * x_hat: row k of (parts, 2 * channels).
template <typename T, typename Acc, typename Index>
__global__ void gradient_sums(const T* __restrict__ dy, const T* __restrict__ x_hat, Acc* __restrict__ sums,
                              Index rows, int channels, int width, Index span)
{
    __shared__ Acc part[BLOCK];
    const Stretch<Index> share = stretch_of(rows, channels, width, span);

    Acc sum = static_cast<Acc>(0);
    Acc product = static_cast<Acc>(0);
    for (Index row = share.first; row < share.last; row += BLOCK / width) {
        const Index place = row * channels + share.column;
        sum += static_cast<Acc>(dy[place]);
        product += static_cast<Acc>(dy[place]) * static_cast<Acc>(x_hat[place]);
    }
    sum = add_lines(sum, part, width);
    product = add_lines(product, part, width);
    if (share.writes) {
        Acc* target = sums + static_cast<Index>(blockIdx.y) * 2 * channels + share.column;
        target[0] = sum;
        target[channels] = product;
    }
}

// dx = scaler * inv_std * (dy - (sum(dy) + x_hat * sum(dy * x_hat)) * share), share = 1 / rows, sums (2, channels).
// One thread an element; total = dx.size.
template <typename T, typename Acc, typename Index>
__global__ void batchnorm_backward(const T* __restrict__ dy, const T* __restrict__ x_hat,
                                   const T* __restrict__ scaler, const T* __restrict__ inv_std,
                                   const Acc* __restrict__ sums, T* __restrict__ dx, Index total, int channels,
                                   Acc share)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const int column = number % channels;
    const Acc means = (sums[column] + static_cast<Acc>(x_hat[number]) * sums[column + channels]) * share;
    const Acc factor = static_cast<Acc>(scaler[column]) * static_cast<Acc>(inv_std[column]);
    dx[number] = static_cast<T>(factor * (static_cast<Acc>(dy[number]) - means));
}
