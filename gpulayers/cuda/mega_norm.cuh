// Batch normalisation, with activation and max pooling behind it, within blocks that each train on some of the examples;
// see mega_common.cuh. Its input Z lies in shared memory. Moments, and the gradient's sums, are taken by each block over
// its own examples; behind a barrier every block adds up those of all blocks, in the same order.

constexpr int power_below(int number)
{
    return number < 2 ? 1 : 2 * power_below(number / 2);
}

// Threads side by side have channels side by side; WIDTH of them are a line.
template <class S>
struct Lines {
    static constexpr int WIDTH = S::filters < THREADS ? S::filters : THREADS;
    static constexpr int COUNT = power_below(THREADS / WIDTH);
};

// The sum of value(0), value(1) ... value(count - 1) of this thread's channel, for all its threads, in a fixed order. By
// all threads of the block.
template <class S, class Value>
__device__ float column_sum(float* shared, bool there, int count, const Value& value)
{
    constexpr int WIDTH = Lines<S>::WIDTH, LINES = Lines<S>::COUNT;
    float* sums = shared + S::scratch;
    const int line = this_thread() / WIDTH;
    float sum = 0.0f;
    if (there && line < LINES) {
#pragma unroll 4
        for (int i = line; i < count; i += LINES) sum += value(i);
    }
    sums[this_thread()] = sum;
    for (int half = LINES / 2; half > 0; half /= 2) {
        __syncthreads();
        if (line < half) sums[this_thread()] += sums[this_thread() + half * WIDTH];
    }
    __syncthreads();
    sum = sums[this_thread() % WIDTH];
    __syncthreads();
    return sum;
}

// x_hat from z.
template <class S>
__device__ __forceinline__ float standardized(const float* shared, float z, int filter)
{
    return (z - shared[S::mean + filter]) * shared[S::inverse + filter];
}

// Scaler and intercept of this step, and what a frozen layer takes for mean and variance.
template <class S>
__device__ void norm_load(float* shared, const float* param, const float* running)
{
    for (int i = this_thread(); i < S::parameters; i += THREADS) shared[S::scaler + i] = param[S::flat + i];
    if constexpr (S::frozen) {
        for (int i = this_thread(); i < S::filters; i += THREADS) {
            shared[S::mean + i] = running[S::running + i];
            shared[S::inverse + i] = 1.0f / sqrt(running[S::running + S::filters + i] + S::epsilon);
        }
    }
}

// The moments of this block's examples, mean and sum of the squared distances from it, with those of one more, `before`
// of which there were. Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances" (1979).
template <class S>
__device__ void norm_moments(float* shared, int before)
{
    constexpr int WIDTH = Lines<S>::WIDTH, PIXELS = S::rows * S::cols;
    const float share = 1.0f / static_cast<float>(before + 1);
    for (int start = 0; start < S::filters; start += WIDTH) {
        const int filter = start + this_thread() % WIDTH;
        const bool there = filter < S::filters;
        const float* z = shared + S::input + min(filter, S::filters - 1);
        float mean = z[0], squares = 0.0f;
        if constexpr (PIXELS > 1) {
            const float origin = z[0];
            mean += column_sum<S>(shared, there, PIXELS, [&](int i) { return z[i * S::filters] - origin; }) / PIXELS;
            squares = column_sum<S>(shared, there, PIXELS, [&](int i) {
                return (z[i * S::filters] - mean) * (z[i * S::filters] - mean);
            });
        }
        if (this_thread() >= WIDTH || !there) continue;
        float* own = shared + S::own + filter;
        const float away = before > 0 ? mean - own[0] : 0.0f;
        own[0] = before > 0 ? own[0] + away * share : mean;
        own[S::filters] = (before > 0 ? own[S::filters] : 0.0f) + squares + away * away * PIXELS * before * share;
    }
}

template <class S>
__device__ void norm_give_moments(const float* shared, float* partial)
{
    for (int i = this_thread(); i < S::parameters; i += THREADS) partial[S::moments + i] = shared[S::own + i];
}

// Mean and variance of the batch from the blocks' moments, `pitch` apart; the running ones go on, by one block.
template <class S>
__device__ void norm_statistics(float* shared, const float* partials, int pitch, int blocks, int examples, float* running)
{
    constexpr int WIDTH = Lines<S>::WIDTH, PIXELS = S::rows * S::cols;
    const float total = static_cast<float>(examples) * PIXELS;
    // numbers of a channel that a block has seen
    const auto seen = [&](int block) { return static_cast<float>((examples - 1 - block) / static_cast<int>(gridDim.x) + 1) * PIXELS; };
    for (int start = 0; start < S::filters; start += WIDTH) {
        const int filter = start + this_thread() % WIDTH;
        const bool there = filter < S::filters;
        const float* means = partials + S::moments + min(filter, S::filters - 1);
        const float origin = means[0];
        const float mean = origin + column_sum<S>(shared, there, blocks, [&](int block) {
            return seen(block) * (means[static_cast<long long>(block) * pitch] - origin);
        }) / total;
        const float var = column_sum<S>(shared, there, blocks, [&](int block) {
            const float* own = means + static_cast<long long>(block) * pitch;
            return own[S::filters] + seen(block) * (own[0] - mean) * (own[0] - mean);
        }) / total;
        if (this_thread() >= WIDTH || !there) continue;
        shared[S::mean + filter] = mean;
        shared[S::inverse + filter] = 1.0f / sqrt(var + S::epsilon);
        if (blockIdx.x > 0) continue;
        float* kept = running + S::running + filter;
        kept[0] = S::momentum * kept[0] + S::rest * mean;
        kept[S::filters] = S::momentum * kept[S::filters] + S::rest * var;
    }
}

// Y = pooled activation(scaler * x_hat + intercept). A thread computes a window of the pooling.
template <class S>
__device__ void norm_forward(float* shared)
{
    constexpr int TILE = S::tile_rows * S::tile_cols;
    for (int i = this_thread(); i < S::out_rows * S::out_cols * S::filters; i += THREADS) {
        const int filter = i % S::filters, row = i / S::filters / S::out_cols, col = i / S::filters % S::out_cols;
        const float* z = shared + S::input + (row * S::tile_rows * S::cols + col * S::tile_cols) * S::filters + filter;
        const float scaler = shared[S::scaler + filter], intercept = shared[S::scaler + S::filters + filter];
        float best = 0.0f;
        int winner = 0;
#pragma unroll
        for (int pixel = 0; pixel < TILE; ++pixel) {
            const int away = (pixel / S::tile_cols * S::cols + pixel % S::tile_cols) * S::filters;
            const float value = scaler * standardized<S>(shared, z[away], filter) + intercept;
            if (pixel == 0 || wins(value, best)) {
                best = value;
                winner = pixel;
            }
        }
        shared[output_place<S>(row, col, filter)] = stage_value<S>(best);
        if constexpr (S::pooled) reinterpret_cast<unsigned char*>(shared + S::winners)[i] = winner;
    }
}

// Adds this example's dscaler = sum(dY * x_hat) and dintercept = sum(dY) to the sums of the block.
template <class S>
__device__ void norm_sums(float* shared)
{
    constexpr int WIDTH = Lines<S>::WIDTH, PIXELS = S::out_rows * S::out_cols;
    for (int start = 0; start < S::filters; start += WIDTH) {
        const int filter = start + this_thread() % WIDTH;
        const bool there = filter < S::filters;
        const float* d = shared + S::gradient + filter;
        const float product = column_sum<S>(shared, there, PIXELS, [&](int pixel) {
            int row = pixel / S::out_cols, col = pixel % S::out_cols;
            if constexpr (S::pooled) {
                const int winner = reinterpret_cast<const unsigned char*>(shared + S::winners)[pixel * S::filters + filter];
                row = row * S::tile_rows + winner / S::tile_cols;
                col = col * S::tile_cols + winner % S::tile_cols;
            }
            const float z = shared[S::input + (row * S::cols + col) * S::filters + filter];
            return d[pixel * S::filters] * standardized<S>(shared, z, filter);
        });
        const float sum = column_sum<S>(shared, there, PIXELS, [&](int pixel) { return d[pixel * S::filters]; });
        if (this_thread() >= WIDTH || !there) continue;
        shared[S::sums + filter] += product;
        shared[S::sums + S::filters + filter] += sum;
    }
}

// The block's sums go to `partial`; they start again from zero.
template <class S>
__device__ void norm_give_sums(float* shared, float* partial)
{
    for (int i = this_thread(); i < S::parameters; i += THREADS) {
        partial[S::partial + i] = shared[S::sums + i];
        shared[S::sums + i] = 0.0f;
    }
}

// The batch's means of dY * x_hat and of dY.
template <class S>
__device__ void norm_means(float* shared, const float* partials, int pitch, int blocks, int examples)
{
    constexpr int WIDTH = Lines<S>::WIDTH;
    const float total = static_cast<float>(examples) * (S::rows * S::cols);
    for (int start = 0; start < S::filters; start += WIDTH) {
        const int filter = start + this_thread() % WIDTH;
        const bool there = filter < S::filters;
        const float* own = partials + S::partial + filter;
        for (int kind = 0; kind < 2; ++kind) {
            const float sum = column_sum<S>(shared, there, blocks, [&](int block) {
                return own[static_cast<long long>(block) * pitch + kind * S::filters];
            });
            if (this_thread() < WIDTH && there) shared[S::means + kind * S::filters + filter] = sum / total;
        }
    }
}

// dZ = scaler / sqrt(var + epsilon) * (dY - mean(dY) - x_hat * mean(dY * x_hat)), whose means are zero if it is frozen:
// then mean and variance do not depend on Z. In the place of Z.
template <class S>
__device__ void norm_input_grad(float* shared)
{
    for (int i = this_thread(); i < S::rows * S::cols * S::filters; i += THREADS) {
        const int filter = i % S::filters;
        float d;
        if constexpr (S::pooled) {
            const int y = i / S::filters / S::cols, x = i / S::filters % S::cols;
            const int row = y / S::tile_rows, col = x / S::tile_cols;
            const int number = (row * S::out_cols + col) * S::filters + filter;
            const int pixel = y % S::tile_rows * S::tile_cols + x % S::tile_cols;
            const bool there = row < S::out_rows && col < S::out_cols;
            const unsigned char* winners = reinterpret_cast<const unsigned char*>(shared + S::winners);
            d = there && winners[number] == pixel ? shared[S::gradient + number] : 0.0f;
        } else {
            d = shared[S::gradient + i];
        }
        if constexpr (!S::frozen) {
            const float x_hat = standardized<S>(shared, shared[S::input + i], filter);
            d -= shared[S::means + S::filters + filter] + x_hat * shared[S::means + filter];
        }
        shared[S::gradient_before + i] = shared[S::scaler + filter] * shared[S::inverse + filter] * d;
    }
}

// What a block leaves of an example while it has another one in its shared memory.
template <int BEGIN, int END>
__device__ void put_away(const float* shared, float* saved)
{
    for (int i = BEGIN + this_thread(); i < END; i += THREADS) saved[i] = shared[i];
}

template <int BEGIN, int END>
__device__ void take_back(float* shared, const float* saved)
{
    for (int i = BEGIN + this_thread(); i < END; i += THREADS) shared[i] = saved[i];
}
