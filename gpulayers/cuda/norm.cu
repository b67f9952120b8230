// Batch normalisation inside a planned step, with what follows it there: activation, 2 x 2 max pooling and the sum with a
// shortcut. Two launches forward (column_moments of batchnorm.cu, norm_forward), two back (norm_gradient_sums,
// norm_input_grad): a launch cannot read sums over all rows before the one that makes them has ended, so each second
// one first adds up the parts that the first left, for its own columns. Where a convolution stands before the layer or
// behind it, that one's kernel makes the sums (conv_step.cu).
#include "common.cuh"
#include "activation_functions.cuh"
#include "rows.cuh"
#include "columns.cuh"
#include "norm.cuh"

#define MOST_COLUMNS 32

// A warp adds up the moments of one column's spans: the distance of the mean from the column's first number, and the
// (biased) variance. What was added up of span k are distances from x[k * step * channels]. (Chan, Golub & LeVeque,
// "Updating formulae and a pairwise algorithm for computing sample variances", 1979.)
template <typename Acc>
struct Moments {
    Acc shift, var;
};

template <typename T, typename Acc, typename Index>
__device__ __forceinline__ Moments<Acc> moments_of(const T* __restrict__ x, int channels, const Acc* __restrict__ sums,
                                                   const Acc* __restrict__ squares, Index rows, Index span, Index step,
                                                   int parts)
{
    const int lane = threadIdx.x % 32;
    const Acc first = static_cast<Acc>(x[0]);
    Acc centre = static_cast<Acc>(0);
#pragma unroll 2
    for (int k = lane; k < parts; k += 32)
        centre += sums[k] + static_cast<Acc>(rows_of(k, rows, span)) *
                                (static_cast<Acc>(x[k * step * channels]) - first);
    centre = reduce_row<32, false>(centre, static_cast<Acc*>(nullptr)) / static_cast<Acc>(rows);
    Acc spread = static_cast<Acc>(0);
#pragma unroll 2
    for (int k = lane; k < parts; k += 32) {
        const Acc count = static_cast<Acc>(rows_of(k, rows, span));
        const Acc away = sums[k] / count + (static_cast<Acc>(x[k * step * channels]) - first) - centre;
        spread += squares[k] + count * away * away;
    }
    spread = reduce_row<32, false>(spread, static_cast<Acc*>(nullptr));
    return {centre, spread / static_cast<Acc>(rows)};
}

// y = act(scaler * x_hat + intercept), pooled, + side; each where wanted. running = keep * running + (1 - keep) *
// batch, for mean and variance. sums and squares are those of column_moments (step 0) or of conv2d_moments (step is
// span), of `parts` spans of `span` rows.
template <typename T, typename Acc, typename Index>
__global__ void norm_forward(const T* __restrict__ x, const Acc* __restrict__ sums, const Acc* __restrict__ squares,
                             const T* __restrict__ scaler, const T* __restrict__ intercept,
                             const T* __restrict__ side, T* __restrict__ running_mean, T* __restrict__ running_var,
                             Acc* __restrict__ shift, Acc* __restrict__ inverse, T* __restrict__ y,
                             unsigned char* __restrict__ winners, Index rows, Index span, Index step,
                             Index outputs, Index out_span, int parts, int channels, int width, int image_rows,
                             int image_cols, int activated, int pooled, int has_side, Acc eps, Acc keep, Acc rest)
{
    __shared__ Acc shifts[MOST_COLUMNS];
    __shared__ Acc inverses[MOST_COLUMNS];
    for (int own = threadIdx.x / 32; own < width; own += BLOCK / 32) {
        const int number = static_cast<int>(blockIdx.x) * width + own;
        if (number >= channels) break;
        const Index start = static_cast<Index>(number) * parts;
        const Moments<Acc> moments =
            moments_of(x + number, channels, sums + start, squares + start, rows, span, step, parts);
        if (threadIdx.x % 32 != 0) continue;
        shifts[own] = moments.shift;
        inverses[own] = static_cast<Acc>(1) / sqrt(moments.var + eps);
        if (blockIdx.y > 0) continue;
        shift[number] = shifts[own];
        inverse[number] = inverses[own];
        const Acc mean = static_cast<Acc>(x[number]) + moments.shift;
        running_mean[number] = static_cast<T>(keep * static_cast<Acc>(running_mean[number]) + rest * mean);
        running_var[number] = static_cast<T>(keep * static_cast<Acc>(running_var[number]) + rest * moments.var);
    }
    __syncthreads();

    const Stretch<Index> share = stretch_of(outputs, channels, width, out_span);
    if (share.first >= share.last) return;
    const Picture picture = {image_rows, image_cols, pooled != 0};
    const int own = threadIdx.x % width;
    const Column<Acc> column = column_of(share.column, x, shifts[own], inverses[own], scaler, intercept);
    for (Index number = share.first; number < share.last; number += BLOCK / width) {
        const T* own_x = x + share.column;
        Acc best = normalized<T>(column, static_cast<Acc>(own_x[pixel_of(picture, number, 0) * channels]));
        int winner = 0;
        if (pooled)
            for (int quarter = 1; quarter < NO_WINNER; ++quarter) {
                const Index pixel = pixel_of(picture, number, quarter);
                const Acc value = normalized<T>(column, static_cast<Acc>(own_x[pixel * channels]));
                if (value > best || (value != value && best == best)) {
                    best = value;
                    winner = quarter;
                }
            }
        if (activated) best = fused_value(best);
        const Index place = number * channels + share.column;
        const bool shut = FUSED == RELU && activated && !(best > static_cast<Acc>(0));
        if (pooled) winners[place] = static_cast<unsigned char>(shut ? NO_WINNER : winner);
        if (has_side) best += static_cast<Acc>(side[place]);
        y[place] = static_cast<T>(best);
    }
}

// Of each span of outputs: the sums of dy * x_hat and, after those of all channels, of dy, where the gradient gets
// through; row k of (parts, 2 * channels). They are the gradients of scaler and intercept, in parts.
template <typename T, typename Acc, typename Index>
__global__ void norm_gradient_sums(const T* __restrict__ x, const T* __restrict__ dy,
                                   const unsigned char* __restrict__ winners, const T* __restrict__ scaler,
                                   const T* __restrict__ intercept, const Acc* __restrict__ shift,
                                   const Acc* __restrict__ inverse, Acc* __restrict__ sums, Index outputs,
                                   Index out_span, int channels, int width, int image_rows, int image_cols, int activated,
                                   int pooled)
{
    __shared__ Acc part[BLOCK];
    const Stretch<Index> share = stretch_of(outputs, channels, width, out_span);
    const Picture picture = {image_rows, image_cols, pooled != 0};
    const int known = share.column < channels ? share.column : 0;
    const Column<Acc> column = column_of(known, x, shift[known], inverse[known], scaler, intercept);

    Acc sum = static_cast<Acc>(0);
    Acc product = static_cast<Acc>(0);
    for (Index number = share.first; number < share.last; number += BLOCK / width) {
        const Acc gradient = static_cast<Acc>(dy[number * channels + share.column]);
        const Passed<Acc> passed =
            passed_on<Index>(picture, x, winners, column, number, channels, share.column, activated != 0, gradient);
        sum += passed.gradient;
        product += passed.gradient * passed.x_hat;
    }
    sum = add_lines(sum, part, width);
    product = add_lines(product, part, width);
    if (share.writes) {
        Acc* target = sums + static_cast<Index>(blockIdx.y) * 2 * channels + share.column;
        target[0] = product;
        target[channels] = sum;
    }
}

// The gradient of normalized(x) at a pixel: what pooling and activation let through of dy.
template <typename T, typename Acc, typename Index>
__device__ __forceinline__ Acc gradient_at(const Picture& picture, const T* __restrict__ dy,
                                           const unsigned char* __restrict__ winners, const Column<Acc>& column,
                                           Acc value, Index pixel, int channels, int number, bool activated)
{
    const Acc slope = activated ? slope_of<T>(column, value) : static_cast<Acc>(1);
    if (!picture.pooled) {
        if (activated && is_shut<T>(column, value)) return static_cast<Acc>(0);
        return static_cast<Acc>(dy[pixel * channels + number]) * slope;
    }
    const Index line = pixel / picture.cols;
    const Index image = line / picture.rows;
    const int row = static_cast<int>(line - image * picture.rows);
    const int col = static_cast<int>(pixel - line * picture.cols);
    if (row / 2 >= picture.rows / 2 || col / 2 >= picture.cols / 2) return static_cast<Acc>(0);
    const Index window = (image * (picture.rows / 2) + row / 2) * (picture.cols / 2) + col / 2;
    const Index place = window * channels + number;
    return winners[place] == 2 * (row % 2) + col % 2 ? static_cast<Acc>(dy[place]) * slope : static_cast<Acc>(0);
}

// dx = scaler * inverse * (dy - (sum(dy) + x_hat * sum(dy * x_hat)) * weight), weight = 1 / rows; sums are those of
// norm_gradient_sums.
template <typename T, typename Acc, typename Index>
__global__ void norm_input_grad(const T* __restrict__ x, const T* __restrict__ dy,
                                const unsigned char* __restrict__ winners, const T* __restrict__ scaler,
                                const T* __restrict__ intercept, const Acc* __restrict__ shift,
                                const Acc* __restrict__ inverse, const Acc* __restrict__ sums, T* __restrict__ dx,
                                Index rows, Index span, int parts, int channels, int width, int image_rows,
                                int image_cols, int activated, int pooled, Acc weight)
{
    __shared__ Acc part[BLOCK];
    const Stretch<Index> share = stretch_of(rows, channels, width, span);
    const Picture picture = {image_rows, image_cols, pooled != 0};
    const int known = share.column < channels ? share.column : 0;
    const Column<Acc> column = column_of(known, x, shift[known], inverse[known], scaler, intercept);

    Acc sum = static_cast<Acc>(0);
    Acc product = static_cast<Acc>(0);
    for (int k = threadIdx.x / width; k < parts; k += BLOCK / width) {
        const Acc* source = sums + static_cast<Index>(k) * 2 * channels + known;
        product += source[0];
        sum += source[channels];
    }
    sum = add_lines(sum, part, width);
    product = add_lines(product, part, width);

    const Acc factor = column.scaler * column.inverse;
    for (Index pixel = share.first; pixel < share.last; pixel += BLOCK / width) {
        const Index place = pixel * channels + share.column;
        const Acc value = static_cast<Acc>(x[place]);
        const Acc gradient =
            gradient_at<T>(picture, dy, winners, column, value, pixel, channels, share.column, activated != 0);
        const Acc means = (sum + standardized(column, value) * product) * weight;
        dx[place] = static_cast<T>(factor * (gradient - means));
    }
}
