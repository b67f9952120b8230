// Dense layers and the loss within a block that trains on one example after the other; see mega_common.cuh.
// Their weights are read where they lie in global memory: a block has no room for them.

// Y = activation(X W + b). A thread has a few columns and a share of the rows, whose sums are added up in order. Weights
// come from afar, so many of them are asked for at a time.
template <class S>
__device__ void dense_forward(float* shared, const float* param)
{
    constexpr int ROWS = (S::inputs + S::shares - 1) / S::shares, ACROSS = S::outputs / S::vector;
    for (int unit = this_thread(); unit < ACROSS * S::shares; unit += THREADS) {
        const int col = unit % ACROSS * S::vector, start = unit / ACROSS * ROWS;
        const int end = min(S::inputs, start + ROWS);
        const float* W = param + S::weights + col;
        float sum[S::vector] = {};
#pragma unroll 10
        for (int row = start; row < end; ++row) {
            const Pack<S::vector> w = load<S::vector>(W + row * S::outputs);
            const float x = shared[S::input + row];
#pragma unroll
            for (int v = 0; v < S::vector; ++v) sum[v] += x * w.at[v];
        }
#pragma unroll
        for (int v = 0; v < S::vector; ++v) shared[S::scratch + unit * S::vector + v] = sum[v];
    }
    __syncthreads();
    for (int col = this_thread(); col < S::outputs; col += THREADS) {
        float sum = param[S::bias + col];
#pragma unroll 8
        for (int share = 0; share < S::shares; ++share) sum += shared[S::scratch + share * S::outputs + col];
        shared[S::output + col] = stage_value<S>(sum);
    }
}

// What the weight's gradient will need of this example: the input, and the gradient before the activation.
template <class S>
__device__ void dense_save(const float* shared, float* saved)
{
    for (int i = this_thread(); i < S::inputs; i += THREADS) saved[S::saved_input + i] = shared[S::input + i];
    for (int i = this_thread(); i < S::outputs; i += THREADS) saved[S::saved_gradient + i] = shared[S::gradient + i];
}

// dX = dZ W^T times the slope of dropout and activation before. Some threads share a few rows.
template <class S>
__device__ void dense_input_grad(float* shared, const float* param)
{
    constexpr int LANES = 8, APART = THREADS / LANES, ROWS = 4;
    const int lane = this_thread() % LANES;
    for (int first = 0; first < S::inputs; first += APART * ROWS) {  // by all threads: they shuffle
        const int start = first + this_thread() / LANES;
        float sum[ROWS] = {};
#pragma unroll 4
        for (int col = lane * S::vector; col < S::outputs; col += LANES * S::vector) {
            const Pack<S::vector> d = load<S::vector>(shared + S::gradient + col);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const int row = min(start + r * APART, S::inputs - 1);
                const Pack<S::vector> w = load<S::vector>(param + S::weights + row * S::outputs + col);
#pragma unroll
                for (int v = 0; v < S::vector; ++v) sum[r] += d.at[v] * w.at[v];
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int offset = LANES / 2; offset > 0; offset /= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], offset);
            const int row = start + r * APART;
            if (row < S::inputs && lane == 0)
                shared[S::gradient_before + row] = sum[r] * slope_before<S>(shared, row, shared[S::input + row]);
        }
    }
}

__device__ __forceinline__ float warp_sum(float value)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

// The loss of this example, log sum exp(z) - z[label], whether its label has the largest output (the first one of equal
// ones), and the loss's gradient (softmax(z) - [class is the label]) * scale. By the first warp. A label that is no class reads nothing and gives NaN, as in softmax.cu.
template <class S>
__device__ void cross_entropy(float* shared, long long label, float scale, float* result, float* logits)
{
    if (this_thread() >= 32) return;
    const float* z = shared + S::output;
    const bool known = label >= 0 && label < S::outputs;
    float highest = minus_infinity<float>();
    int place = S::outputs;
    for (int c = this_thread(); c < S::outputs; c += 32)
        if (wins(z[c], highest) || place == S::outputs) {
            highest = z[c];
            place = c;
        }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, highest, offset);
        const int there = __shfl_xor_sync(0xffffffffu, place, offset);
        if (wins(other, highest) || (!wins(highest, other) && there < place)) {
            highest = other;
            place = there;
        }
    }
    float total = 0.0f;
    for (int c = this_thread(); c < S::outputs; c += 32) total += exp(z[c] - highest);
    total = warp_sum(total);
    for (int c = this_thread(); c < S::outputs; c += 32) {
        const float hit = c == label ? 1.0f : 0.0f;
        const float slope = slope_at<S::activation>(z[c]);
        shared[S::gradient + c] = (exp(z[c] - highest) / total - hit) * scale * slope;
        logits[c] = z[c];
    }
    if (this_thread() > 0) return;
    result[0] = known ? log(total) - (z[label] - highest) : not_a_number<float>();
    result[1] = label == place ? 1.0f : 0.0f;
}
