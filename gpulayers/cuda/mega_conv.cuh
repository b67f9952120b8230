// A convolution with bias, activation and max pooling within a block that trains on one example after the other; see
// mega_common.cuh.

// multiplications of one thread that are written out one by one
#define WRITTEN_OUT 800

// The image, bytes as value * scale + shift of their channel: in two roundings, as feed.cu has them.
template <class S, typename Pixel>
__device__ void load_image(float* shared, const Pixel* image, const float* factors)
{
    for (int i = this_thread(); i < S::rows * S::cols * S::channels; i += THREADS) {
        const int channel = i % S::channels, col = i / S::channels % S::cols, row = i / (S::channels * S::cols);
        float value = static_cast<float>(image[i]);
        if (sizeof(Pixel) == 1) value = __fadd_rn(__fmul_rn(value, factors[channel]), factors[S::channels + channel]);
        shared[S::place + ((row + S::top) * S::padded + col + S::left) * S::channels + channel] = value;
    }
}

// W and b of this step.
template <class S>
__device__ void conv_load(float* shared, const float* param)
{
    constexpr int WEIGHTS = S::parameters - S::filters;
    for (int i = this_thread(); i < WEIGHTS; i += THREADS) shared[S::weights + i] = param[S::flat + i];
    for (int i = this_thread(); i < S::filters; i += THREADS) shared[S::bias + i] = param[S::flat + WEIGHTS + i];
}

// Y = pooled activation(X * W + b). A thread computes a tile of pixels, which is the window of the pooling if there is
// one, for a few filters.
template <class S>
__device__ void conv_forward(float* shared)
{
    constexpr int TILE = S::tile_rows * S::tile_cols;
    constexpr int ACROSS = S::tiles_across, GROUPS = S::filters / S::group;
    constexpr int UNROLL = S::kernel_rows * S::kernel_cols * TILE * S::group <= WRITTEN_OUT ? S::kernel_rows : 1;
    for (int unit = this_thread(); unit < S::tiles_down * ACROSS * GROUPS; unit += THREADS) {
        const int filter = unit % GROUPS * S::group, tile = unit / GROUPS;
        const int row = tile / ACROSS * S::tile_rows, col = tile % ACROSS * S::tile_cols;
        const float* source = shared + S::input + (row * S::stride_rows * S::input_cols + col * S::stride_cols) * S::channels;
        float sum[TILE][S::group] = {};
#pragma unroll 1
        for (int channel = 0; channel < S::channels; ++channel) {
#pragma unroll UNROLL
            for (int r = 0; r < S::kernel_rows; ++r)
#pragma unroll
                for (int c = 0; c < S::kernel_cols; ++c) {
                    const int tap = (r * S::kernel_cols + c) * S::channels + channel;
                    const Pack<S::group> w = load<S::group>(shared + S::weights + tap * S::filters + filter);
#pragma unroll
                    for (int pixel = 0; pixel < TILE; ++pixel) {
                        const int y = pixel / S::tile_cols * S::stride_rows + r * S::dilation_rows;
                        const int x = pixel % S::tile_cols * S::stride_cols + c * S::dilation_cols;
                        const float value = source[(y * S::input_cols + x) * S::channels + channel];
#pragma unroll
                        for (int g = 0; g < S::group; ++g) sum[pixel][g] += value * w.at[g];
                    }
                }
        }
        const Pack<S::group> bias = load<S::group>(shared + S::bias + filter);
#pragma unroll
        for (int g = 0; g < S::group; ++g) {
            if constexpr (S::pooled) {
                float best = sum[0][g];
                int winner = 0;
#pragma unroll
                for (int pixel = 1; pixel < TILE; ++pixel)
                    if (wins(sum[pixel][g], best)) {
                        best = sum[pixel][g];
                        winner = pixel;
                    }
                const float y = stage_value<S>(best + bias.at[g]);
                shared[output_place<S>(tile / ACROSS, tile % ACROSS, filter + g)] = y;
                reinterpret_cast<unsigned char*>(shared + S::winners)[tile * S::filters + filter + g] = winner;
            } else {
#pragma unroll
                for (int pixel = 0; pixel < TILE; ++pixel) {
                    const float y = stage_value<S>(sum[pixel][g] + bias.at[g]);
                    const int place = output_place<S>(row + pixel / S::tile_cols, col + pixel % S::tile_cols, filter + g);
                    shared[place] = y;
                }
            }
        }
    }
}

// Where in the input the window begins whose output got this gradient.
template <class S>
__device__ __forceinline__ int window_start(const float* shared, int pixel, int filter)
{
    int row = pixel / S::out_cols, col = pixel % S::out_cols;
    if constexpr (S::pooled) {
        const int winner = reinterpret_cast<const unsigned char*>(shared + S::winners)[pixel * S::filters + filter];
        row = row * S::tile_rows + winner / S::tile_cols;
        col = col * S::tile_cols + winner % S::tile_cols;
    }
    return (row * S::stride_rows * S::input_cols + col * S::stride_cols) * S::channels;
}

// Adds this example's dW and db to the sums of the block. A thread has one row of taps of a filter and channel, and a
// share of the pixels; each share has sums of its own.
template <class S>
__device__ void conv_weight_sums(float* shared)
{
    constexpr int UNITS = S::kernel_rows * S::channels * S::filters;
    constexpr int PIXELS = S::out_rows * S::out_cols, EACH = (PIXELS + S::shares - 1) / S::shares;
    constexpr int WEIGHTS = UNITS * S::kernel_cols;
    for (int unit = this_thread(); unit < UNITS * S::shares; unit += THREADS) {
        const int filter = unit % S::filters, channel = unit / S::filters % S::channels;
        const int r = unit / (S::filters * S::channels) % S::kernel_rows, share = unit / UNITS;
        const float* source = shared + S::input + r * S::dilation_rows * S::input_cols * S::channels + channel;
        float sum[S::kernel_cols] = {}, total = 0.0f;
        const int end = min(PIXELS, (share + 1) * EACH);
#pragma unroll 4
        for (int pixel = share * EACH; pixel < end; ++pixel) {
            const float d = shared[S::gradient + pixel * S::filters + filter];
            const float* x = source + window_start<S>(shared, pixel, filter);
            total += d;
#pragma unroll
            for (int c = 0; c < S::kernel_cols; ++c) sum[c] += d * x[c * S::dilation_cols * S::channels];
        }
        float* target = shared + S::sums + share * (WEIGHTS + S::filters);
#pragma unroll
        for (int c = 0; c < S::kernel_cols; ++c)
            target[((r * S::kernel_cols + c) * S::channels + channel) * S::filters + filter] += sum[c];
        if (r == 0 && channel == 0) target[WEIGHTS + filter] += total;
    }
}

// The block's sums go to `partial`; they start again from zero.
template <class S>
__device__ void conv_give_sums(float* shared, float* partial)
{
    for (int i = this_thread(); i < S::parameters; i += THREADS) {
        float sum = 0.0f;
#pragma unroll
        for (int share = 0; share < S::shares; ++share) {
            float* part = shared + S::sums + share * S::parameters + i;
            sum += *part;
            *part = 0.0f;
        }
        partial[S::partial + i] = sum;
    }
}

// The gradient of the convolution's output before pooling, each pixel `stride` apart, with room around it, so that the
// gradient of the input is a convolution of stride 1 without borders.
template <class S>
__device__ void conv_spread(float* shared)
{
    constexpr int TILE = S::pooled ? S::tile_rows * S::tile_cols : 1;
    constexpr int DOWN = S::pooled ? S::tile_rows : 1, ACROSS = S::pooled ? S::tile_cols : 1;
    for (int i = this_thread(); i < S::out_rows * S::out_cols * S::filters; i += THREADS) {
        const int filter = i % S::filters, pixel = i / S::filters;
        const float d = shared[S::gradient + i];
        int winner = 0;
        if constexpr (S::pooled) winner = reinterpret_cast<const unsigned char*>(shared + S::winners)[i];
#pragma unroll
        for (int t = 0; t < TILE; ++t) {
            const int row = (pixel / S::out_cols * DOWN + t / ACROSS) * S::stride_rows + S::spread_top;
            const int col = (pixel % S::out_cols * ACROSS + t % ACROSS) * S::stride_cols + S::spread_left;
            if (row < S::spread_rows && col < S::spread_cols)  // others have only padding in their window
                shared[S::spread + (row * S::spread_cols + col) * S::filters + filter] = winner == t ? d : 0.0f;
        }
    }
}

// dX times the slope of dropout and activation before, into the gradient of the stage before. A thread computes a tile of
// pixels of one channel.
template <class S>
__device__ void conv_input_grad(float* shared)
{
    constexpr int TILE = S::back_rows * S::back_cols, ACROSS = S::cols / S::back_cols;
    constexpr int UNROLL = S::kernel_rows * S::kernel_cols * TILE * S::vector <= WRITTEN_OUT ? S::kernel_rows : 1;
    for (int unit = this_thread(); unit < S::rows * S::cols / TILE * S::channels; unit += THREADS) {
        const int channel = unit % S::channels, tile = unit / S::channels;
        const int row = tile / ACROSS * S::back_rows, col = tile % ACROSS * S::back_cols;
        const int first = (row + S::top + S::spread_top) * S::spread_cols + col + S::left + S::spread_left;
        const float* source = shared + S::spread + first * S::filters;
        const float* weights = shared + S::weights + channel * S::filters;
        float sum[TILE] = {};
#pragma unroll 1
        for (int filter = 0; filter < S::filters; filter += S::vector) {
#pragma unroll UNROLL
            for (int r = 0; r < S::kernel_rows; ++r)
#pragma unroll
                for (int c = 0; c < S::kernel_cols; ++c) {
                    const int tap = (r * S::kernel_cols + c) * S::channels * S::filters;
                    const Pack<S::vector> w = load<S::vector>(weights + tap + filter);
#pragma unroll
                    for (int pixel = 0; pixel < TILE; ++pixel) {
                        const int y = pixel / S::back_cols - r * S::dilation_rows;
                        const int x = pixel % S::back_cols - c * S::dilation_cols;
                        const Pack<S::vector> d = load<S::vector>(source + (y * S::spread_cols + x) * S::filters + filter);
#pragma unroll
                        for (int v = 0; v < S::vector; ++v) sum[pixel] += d.at[v] * w.at[v];
                    }
                }
        }
#pragma unroll
        for (int pixel = 0; pixel < TILE; ++pixel) {
            const int y = row + pixel / S::back_cols, x = col + pixel % S::back_cols;
            const int number = (y * S::cols + x) * S::channels + channel;
            const float value = shared[S::input + ((y + S::top) * S::input_cols + x + S::left) * S::channels + channel];
            shared[S::gradient_before + number] = sum[pixel] * slope_before<S>(shared, number, value);
        }
    }
}
