// What a step of mega.py does between its grid-wide barriers: the sums of the gradients over all examples, each by the
// block that owns the parameters, which updates them at once. All sums are taken in a fixed order.

enum Rule { SGD_RULE, ADAGRAD_RULE, RMSPROP_RULE, ADAM_RULE };

// The parameters, the optimizer's state and the constants of its rule, as flat.cu has them.
struct Update {
    float *param, *first, *second;
    const float* rates;
    int rule;
    float a, b, c, d, eps, decay;
    float mean_share, var_share;  // Adam's 1 - decay^t
};

__device__ __forceinline__ void update_one(const Update& u, int number, int section, float g)
{
    const float rate = u.rates[section], old = u.param[number];
    if (u.rule == SGD_RULE) {
        const float velocity = u.a * u.first[number] + rate * g;
        u.first[number] = velocity;
        u.param[number] = old - velocity;
    } else if (u.rule == ADAM_RULE) {
        const float mean = u.a * u.first[number] + u.b * g;
        const float var = u.c * u.second[number] + u.d * (g * g);
        u.first[number] = mean;
        u.second[number] = var;
        u.param[number] = old - rate * u.decay * old - rate * (mean / u.mean_share) / (sqrt(var / u.var_share) + u.eps);
    } else {
        const float cache = u.rule == ADAGRAD_RULE ? u.first[number] + g * g : u.a * u.first[number] + u.b * (g * g);
        u.first[number] = cache;
        u.param[number] = old - rate * g / (sqrt(cache) + u.eps);
    }
}

#define TILE_ROWS 16
#define TILE_COLS 32
#define CHUNK 64

// A tile of a dense layer's W, and with the first rows b: dW = X^T dZ over what the blocks saved of their examples,
// `pitch` apart, in chunks that go through shared memory. A thread has some rows of a column.
template <class S>
__device__ void dense_update(float* shared, const float* saved, int pitch, int examples, int tile, const Update& u)
{
    constexpr int ACROSS = (S::outputs + TILE_COLS - 1) / TILE_COLS;
    constexpr int APART = THREADS / TILE_COLS, ROWS = TILE_ROWS / APART;
    static_assert(ROWS * APART == TILE_ROWS && APART * TILE_COLS == THREADS, "the threads share the tile evenly");
    float* X = shared + S::scratch;
    float* D = X + CHUNK * TILE_ROWS;
    const int top = tile / ACROSS * TILE_ROWS, left = tile % ACROSS * TILE_COLS;
    const int row = threadIdx.x / TILE_COLS, col = threadIdx.x % TILE_COLS;
    float sum[ROWS] = {}, total = 0.0f;
    for (int start = 0; start < examples; start += CHUNK) {
        __syncthreads();
        for (int i = threadIdx.x; i < CHUNK * TILE_ROWS; i += THREADS) {
            const int example = start + i / TILE_ROWS, input = top + i % TILE_ROWS;
            const bool there = example < examples && input < S::inputs;
            X[i] = there ? saved[static_cast<long long>(example) * pitch + S::saved_input + input] : 0.0f;
        }
        for (int i = threadIdx.x; i < CHUNK * TILE_COLS; i += THREADS) {
            const int example = start + i / TILE_COLS, output = left + i % TILE_COLS;
            const bool there = example < examples && output < S::outputs;
            D[i] = there ? saved[static_cast<long long>(example) * pitch + S::saved_gradient + output] : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int e = 0; e < CHUNK; ++e) {
            const float d = D[e * TILE_COLS + col];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sum[r] += X[e * TILE_ROWS + r * APART + row] * d;
            total += d;
        }
    }
    __syncthreads();
    if (left + col >= S::outputs) return;
    const int number = S::weights + (top + row) * S::outputs + left + col;
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
        if (top + row + r * APART < S::inputs) update_one(u, number + r * APART * S::outputs, S::section, sum[r]);
    if (top + row == 0) update_one(u, S::bias + left + col, S::section + 1, total);
}

// 32 parameters of a convolution: the sum of the blocks' partial sums, `pitch` apart; each warp takes every eighth.
template <class S>
__device__ void conv_update(float* shared, const float* partials, int pitch, int blocks, int part, const Update& u)
{
    constexpr int WARPS = THREADS / 32;
    const int number = part * 32 + threadIdx.x % 32, warp = threadIdx.x / 32;
    float* sums = shared + S::scratch;
    float sum = 0.0f;
    if (number < S::parameters) {
#pragma unroll 8
        for (int block = warp; block < blocks; block += WARPS)
            sum += partials[static_cast<long long>(block) * pitch + S::partial + number];
    }
    __syncthreads();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0 && number < S::parameters) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) total += sums[w * 32 + number % 32];
        const int section = number < S::parameters - S::filters ? S::section : S::section + 1;
        update_one(u, S::flat + number, section, total);
    }
    __syncthreads();
}

// Loss and hits of the step, from those of the examples, by one block; `shared` holds two numbers for each thread.
__device__ void finish_step(float* shared, const float* results, int examples, float scale, float* record)
{
    __syncthreads();
    float loss = 0.0f, hits = 0.0f;
    for (int i = threadIdx.x; i < examples; i += THREADS) {
        loss += results[2 * i];
        hits += results[2 * i + 1];
    }
    shared[threadIdx.x] = loss;
    shared[THREADS + threadIdx.x] = hits;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        shared[threadIdx.x] += shared[threadIdx.x + half];
        shared[THREADS + threadIdx.x] += shared[THREADS + threadIdx.x + half];
    }
    if (threadIdx.x == 0) {
        record[0] = shared[0] * scale;
        record[1] = shared[THREADS];
    }
    __syncthreads();
}
