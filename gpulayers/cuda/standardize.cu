// Standardisation of rows, alone and followed by layer normalisation's scaler and intercept.
//
// A row is the `chunk` channels of one group in all pixels of an example, x being (examples, pixels, groups, chunk);
// with one group x is a plain matrix. rows = examples * groups, width = pixels * chunk. With affine = 0 scaler,
// intercept and y are not touched. Sums are taken in a fixed order: bitwise repeatable.
#include "common.cuh"
#include "rows.cuh"

template <typename Index>
struct Row {
    Index start;
    Index skip;  // numbers of the other groups between two chunks
};

template <typename Index>
__device__ __forceinline__ Row<Index> row_at(Index row, int width, int groups, int chunk)
{
    const Index group = row % groups;
    return {(row - group) * width + group * chunk, static_cast<Index>(groups - 1) * chunk};
}

template <typename Index>
__device__ __forceinline__ Index element(const Row<Index>& row, int number, int chunk)
{
    return row.start + number + number / chunk * row.skip;
}

// dy, with affine times the scaler.
template <typename T, typename Acc>
__device__ __forceinline__ Acc scaled(T dy, const T* scaler, int number, int affine)
{
    return affine ? static_cast<Acc>(scaler[number]) * static_cast<Acc>(dy) : static_cast<Acc>(dy);
}

// x_hat = (x - mean) / sqrt(var + eps), y = scaler * x_hat + intercept. What is averaged are distances from the row's
// first number and then from the mean, so that nothing cancels in rows far from zero.
template <typename T, typename Acc, typename Index, int LANES>
__global__ void standardize_forward(const T* __restrict__ x, const T* __restrict__ scaler,
                                    const T* __restrict__ intercept, T* __restrict__ x_hat, Acc* __restrict__ inv_std,
                                    T* __restrict__ y, Index rows, int width, int groups, int chunk, Acc eps,
                                    int affine)
{
    __shared__ Acc warps[BLOCK / 32];
    const Index row = row_number<Index, LANES>();
    if (row >= rows) return;
    const int lane = threadIdx.x % LANES;
    const Row<Index> own = row_at(row, width, groups, chunk);
    const Acc origin = static_cast<Acc>(x[own.start]);

    Acc mean = static_cast<Acc>(0);
    for (int c = lane; c < width; c += LANES) mean += static_cast<Acc>(x[element(own, c, chunk)]) - origin;
    mean = reduce_row<LANES, false>(mean, warps) / static_cast<Acc>(width);
    Acc square = static_cast<Acc>(0);
    for (int c = lane; c < width; c += LANES) {
        const Acc centred = static_cast<Acc>(x[element(own, c, chunk)]) - origin - mean;
        square += centred * centred;
    }
    square = reduce_row<LANES, false>(square, warps);
    const Acc inverse = static_cast<Acc>(1) / sqrt(square / static_cast<Acc>(width) + eps);
    for (int c = lane; c < width; c += LANES) {
        const Index place = element(own, c, chunk);
        const Acc value = (static_cast<Acc>(x[place]) - origin - mean) * inverse;
        x_hat[place] = static_cast<T>(value);
        if (affine) y[place] = static_cast<T>(static_cast<Acc>(scaler[c]) * value + static_cast<Acc>(intercept[c]));
    }
    if (lane == 0) inv_std[row] = inverse;
}

// dx = inv_std * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)) with dx_hat = dy, or scaler * dy
template <typename T, typename Acc, typename Index, int LANES>
__global__ void standardize_backward(const T* __restrict__ dy, const T* __restrict__ x_hat,
                                     const T* __restrict__ scaler, const Acc* __restrict__ inv_std, T* __restrict__ dx,
                                     Index rows, int width, int groups, int chunk, int affine)
{
    __shared__ Acc warps[BLOCK / 32];
    const Index row = row_number<Index, LANES>();
    if (row >= rows) return;
    const int lane = threadIdx.x % LANES;
    const Row<Index> own = row_at(row, width, groups, chunk);

    Acc shift = static_cast<Acc>(0);
    Acc slope = static_cast<Acc>(0);
    for (int c = lane; c < width; c += LANES) {
        const Index place = element(own, c, chunk);
        const Acc value = scaled<T, Acc>(dy[place], scaler, c, affine);
        shift += value;
        slope += value * static_cast<Acc>(x_hat[place]);
    }
    shift = reduce_row<LANES, false>(shift, warps) / static_cast<Acc>(width);
    slope = reduce_row<LANES, false>(slope, warps) / static_cast<Acc>(width);
    for (int c = lane; c < width; c += LANES) {
        const Index place = element(own, c, chunk);
        const Acc rest = scaled<T, Acc>(dy[place], scaler, c, affine) - shift - static_cast<Acc>(x_hat[place]) * slope;
        dx[place] = static_cast<T>(inv_std[row] * rest);
    }
}
