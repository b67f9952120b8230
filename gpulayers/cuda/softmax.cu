// Softmax over the rows of (rows, classes), alone and with the cross-entropy loss; the losses of planned steps.
//
// Sums are taken in a fixed order: bitwise repeatable.
#include "common.cuh"
#include "rows.cuh"

// y = exp(z - max z) / sum exp(z - max z)
template <typename T, typename Acc, typename Index, int LANES>
__global__ void softmax_forward(const T* __restrict__ z, T* __restrict__ y, Index rows, int classes)
{
    __shared__ Acc warps[BLOCK / 32];
    const Index row = row_number<Index, LANES>();
    if (row >= rows) return;  // a whole warp at a time, and never where a block shares a row
    const int lane = threadIdx.x % LANES;
    const T* source = z + row * classes;
    T* target = y + row * classes;

    Acc highest = minus_infinity<Acc>();
    for (int c = lane; c < classes; c += LANES) highest = larger(highest, static_cast<Acc>(source[c]));
    highest = reduce_row<LANES, true>(highest, warps);
    Acc total = static_cast<Acc>(0);
    for (int c = lane; c < classes; c += LANES) total += exp(static_cast<Acc>(source[c]) - highest);
    total = reduce_row<LANES, false>(total, warps);
    for (int c = lane; c < classes; c += LANES)
        target[c] = static_cast<T>(exp(static_cast<Acc>(source[c]) - highest) / total);
}

// dz = y * (dy - <dy, y>)
template <typename T, typename Acc, typename Index, int LANES>
__global__ void softmax_backward(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dz, Index rows,
                                 int classes)
{
    __shared__ Acc warps[BLOCK / 32];
    const Index row = row_number<Index, LANES>();
    if (row >= rows) return;
    const int lane = threadIdx.x % LANES;
    const Index start = row * classes;

    Acc product = static_cast<Acc>(0);
    for (int c = lane; c < classes; c += LANES)
        product += static_cast<Acc>(dy[start + c]) * static_cast<Acc>(y[start + c]);
    product = reduce_row<LANES, false>(product, warps);
    for (int c = lane; c < classes; c += LANES)
        dz[start + c] = static_cast<T>(static_cast<Acc>(y[start + c]) * (static_cast<Acc>(dy[start + c]) - product));
}

// losses = log sum exp(z) - z[label], probs = softmax(z). A label outside [0, classes) reads nothing and gives NaN.
template <typename T, typename Acc, typename Index, int LANES>
__global__ void softmax_cross_entropy_forward(const T* __restrict__ logits, const long long* __restrict__ labels,
                                              T* __restrict__ losses, T* __restrict__ probs, Index rows, int classes)
{
    __shared__ Acc warps[BLOCK / 32];
    const Index row = row_number<Index, LANES>();
    if (row >= rows) return;
    const int lane = threadIdx.x % LANES;
    const T* source = logits + row * classes;
    T* target = probs + row * classes;

    Acc highest = minus_infinity<Acc>();
    for (int c = lane; c < classes; c += LANES) highest = larger(highest, static_cast<Acc>(source[c]));
    highest = reduce_row<LANES, true>(highest, warps);
    Acc total = static_cast<Acc>(0);
    for (int c = lane; c < classes; c += LANES) total += exp(static_cast<Acc>(source[c]) - highest);
    total = reduce_row<LANES, false>(total, warps);
    for (int c = lane; c < classes; c += LANES)
        target[c] = static_cast<T>(exp(static_cast<Acc>(source[c]) - highest) / total);
    if (lane == 0) {
        const long long label = labels[row];
        const bool known = label >= 0 && label < classes;
        losses[row] = static_cast<T>(known ? log(total) - (static_cast<Acc>(source[label]) - highest)
                                           : not_a_number<Acc>());
    }
}

// dlogits = (probs - [class is the label]) * scale, one thread an element; total = probs.size
template <typename T, typename Acc, typename Index>
__global__ void softmax_cross_entropy_backward(const T* __restrict__ probs, const long long* __restrict__ labels,
                                               T* __restrict__ dlogits, Index total, int classes, Acc scale)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index row = number / classes;
    const Acc hit = labels[row] == number - row * classes ? static_cast<Acc>(1) : static_cast<Acc>(0);
    dlogits[number] = static_cast<T>((static_cast<Acc>(probs[number]) - hit) * scale);
}

// losses as softmax_cross_entropy_forward, dlogits = (softmax(z) - [class is the label]) * scale, in one pass.
template <typename T, typename Acc, typename Index, int LANES>
__global__ void softmax_cross_entropy_both(const T* __restrict__ logits, const long long* __restrict__ labels,
                                           T* __restrict__ losses, T* __restrict__ dlogits, Index rows, int classes,
                                           Acc scale)
{
    __shared__ Acc warps[BLOCK / 32];
    const Index row = row_number<Index, LANES>();
    if (row >= rows) return;
    const int lane = threadIdx.x % LANES;
    const T* source = logits + row * classes;
    T* target = dlogits + row * classes;
    const long long label = labels[row];

    Acc highest = minus_infinity<Acc>();
    for (int c = lane; c < classes; c += LANES) highest = larger(highest, static_cast<Acc>(source[c]));
    highest = reduce_row<LANES, true>(highest, warps);
    Acc total = static_cast<Acc>(0);
    for (int c = lane; c < classes; c += LANES) total += exp(static_cast<Acc>(source[c]) - highest);
    total = reduce_row<LANES, false>(total, warps);
    for (int c = lane; c < classes; c += LANES) {
        const Acc hit = c == label ? static_cast<Acc>(1) : static_cast<Acc>(0);
        target[c] = static_cast<T>((exp(static_cast<Acc>(source[c]) - highest) / total - hit) * scale);
    }
    if (lane == 0) {
        const bool known = label >= 0 && label < classes;
        losses[row] = static_cast<T>(known ? log(total) - (static_cast<Acc>(source[label]) - highest)
                                           : not_a_number<Acc>());
    }
}

// The loss of a planned step in a half type, or with smoothed labels: in Acc, and its gradient scaled so that small
// numbers survive. With the targets t = (1 - s) [class is the label] + s / classes, s the smoothing,
// losses = -sum(t log softmax(z)) of each row; dlogits = (softmax(z) - t) * weight * scale[0], rounded last of all.
// A label outside [0, classes) gives a NaN loss. A warp a row; without `scaled` the scale is 1.
template <typename T, typename Acc, typename Index>
__global__ void cross_entropy_step(const T* __restrict__ logits, const long long* __restrict__ labels,
                                   const Acc* __restrict__ scale, Acc* __restrict__ losses, T* __restrict__ dlogits,
                                   Index rows, int classes, int scaled, Acc weight, Acc smoothing)
{
    const Index row = row_number<Index, 32>();
    if (row >= rows) return;
    Acc* const warps = nullptr;  // a warp needs none
    const int lane = threadIdx.x % 32;
    const T* source = logits + row * classes;
    T* target = dlogits + row * classes;
    const long long label = labels[row];

    Acc highest = minus_infinity<Acc>();
    for (int c = lane; c < classes; c += 32) highest = larger(highest, static_cast<Acc>(source[c]));
    highest = reduce_row<32, true>(highest, warps);
    Acc total = static_cast<Acc>(0);
    Acc below = static_cast<Acc>(0);  // how far the logits are below the highest, together
    for (int c = lane; c < classes; c += 32) {
        const Acc shifted = static_cast<Acc>(source[c]) - highest;
        total += exp(shifted);
        below -= shifted;
    }
    total = reduce_row<32, false>(total, warps);
    below = reduce_row<32, false>(below, warps);
    const Acc factor = scaled ? weight * scale[0] : weight;
    const Acc share = smoothing / static_cast<Acc>(classes);
    for (int c = lane; c < classes; c += 32) {
        const Acc wanted = c == label ? static_cast<Acc>(1) - smoothing + share : share;
        target[c] = static_cast<T>((exp(static_cast<Acc>(source[c]) - highest) / total - wanted) * factor);
    }
    if (lane == 0) {
        const bool known = label >= 0 && label < classes;
        const Acc of_label = known ? highest - static_cast<Acc>(source[label]) : not_a_number<Acc>();
        // without smoothing the others count for nothing, infinite though they may be
        losses[row] = log(total) + (smoothing > static_cast<Acc>(0)
                                        ? (static_cast<Acc>(1) - smoothing) * of_label + share * below
                                        : of_label);
    }
}

// What an example with this label counts. A label outside [0, classes) counts as the class that is next to it.
template <typename Acc>
struct ClassWeights {
    const Acc* weights;  // null: one for every class
    int classes;
    bool ignores;
    long long ignored;
};

template <typename Acc>
__device__ __forceinline__ Acc weight_of(const ClassWeights<Acc>& known, long long label)
{
    if (known.ignores && label == known.ignored) return static_cast<Acc>(0);
    if (!known.weights) return static_cast<Acc>(1);
    const long long last = known.classes - 1;
    return known.weights[label < 0 ? 0 : label > last ? last : label];
}

// The same where examples count differently: those of class y `weights[y]`, if there are weights, and those labelled
// `ignored`, if `ignores`, nothing, whatever their logits. With u = (1 - s) w_y [class is the label] + s / classes w_class
// losses = -sum(u log softmax(z)) of each row, dlogits = (softmax(z) sum(u) - u) * scale[0]; of a mean both over the sum of
// what the examples count, nothing if that is nothing. Each warp adds it up by itself.
template <typename T, typename Acc, typename Index>
__global__ void weighted_cross_entropy_step(const T* __restrict__ logits, const long long* __restrict__ labels,
                                            const Acc* __restrict__ weights, const Acc* __restrict__ scale,
                                            Acc* __restrict__ losses, T* __restrict__ dlogits, Index rows, int classes,
                                            int weighted, int ignores, int mean, int scaled,
                                            unsigned long long ignored, Acc smoothing)
{
    const Index row = row_number<Index, 32>();
    if (row >= rows) return;
    Acc* const warps = nullptr;  // a warp needs none
    const int lane = threadIdx.x % 32;
    const T* source = logits + row * classes;
    T* target = dlogits + row * classes;
    const long long label = labels[row];
    const ClassWeights<Acc> known = {weighted ? weights : nullptr, classes, ignores != 0,
                                     static_cast<long long>(ignored)};
    if (ignores && label == known.ignored) {
        for (int c = lane; c < classes; c += 32) target[c] = static_cast<T>(0.0f);
        if (lane == 0) losses[row] = static_cast<Acc>(0);
        return;
    }

    Acc over = static_cast<Acc>(1);
    if (mean) {
        Acc sum = static_cast<Acc>(0);
        for (Index other = lane; other < rows; other += 32) sum += weight_of(known, labels[other]);
        sum = reduce_row<32, false>(sum, warps);
        over = sum > static_cast<Acc>(0) ? static_cast<Acc>(1) / sum : static_cast<Acc>(0);
    }
    Acc highest = minus_infinity<Acc>();
    for (int c = lane; c < classes; c += 32) highest = larger(highest, static_cast<Acc>(source[c]));
    highest = reduce_row<32, true>(highest, warps);
    Acc total = static_cast<Acc>(0);
    Acc below = static_cast<Acc>(0);  // how far the logits are below the highest, each times its class's weight
    Acc all = static_cast<Acc>(0);    // the classes' weights
    for (int c = lane; c < classes; c += 32) {
        const Acc shifted = static_cast<Acc>(source[c]) - highest;
        const Acc own = known.weights ? known.weights[c] : static_cast<Acc>(1);
        total += exp(shifted);
        below -= own * shifted;
        all += own;
    }
    total = reduce_row<32, false>(total, warps);
    below = reduce_row<32, false>(below, warps);
    all = reduce_row<32, false>(all, warps);
    const Acc share = smoothing / static_cast<Acc>(classes);
    const Acc hit = (static_cast<Acc>(1) - smoothing) * weight_of(known, label);
    const Acc factor = scaled ? over * scale[0] : over;
    for (int c = lane; c < classes; c += 32) {
        const Acc own = known.weights ? known.weights[c] : static_cast<Acc>(1);
        const Acc wanted = c == label ? hit + share * own : share * own;
        const Acc p = exp(static_cast<Acc>(source[c]) - highest) / total;
        target[c] = static_cast<T>((p * (hit + share * all) - wanted) * factor);
    }
    if (lane == 0) {
        const bool is_class = label >= 0 && label < classes;
        const Acc of_label = is_class ? highest - static_cast<Acc>(source[label]) : not_a_number<Acc>();
        Acc loss = hit * (log(total) + of_label);
        // without smoothing the others count for nothing, infinite though they may be
        if (smoothing > static_cast<Acc>(0)) loss += share * (all * log(total) + below);
        losses[row] = loss * over;
    }
}

// The squared error of a planned step: losses (rows) = half the sum of (outputs - targets)^2 over `width` numbers, in
// Acc; doutputs = (outputs - targets) * scale[0], rounded last of all. A warp a row; without `scaled` the scale is 1.
template <typename T, typename Acc, typename Index>
__global__ void squared_error_step(const T* __restrict__ outputs, const T* __restrict__ targets,
                                   const Acc* __restrict__ scale, Acc* __restrict__ losses, T* __restrict__ doutputs,
                                   Index rows, int width, int scaled)
{
    const Index row = row_number<Index, 32>();
    if (row >= rows) return;
    const Index start = row * width;
    const int lane = threadIdx.x % 32;
    Acc sum = static_cast<Acc>(0);
    for (int i = lane; i < width; i += 32) {
        const Acc away = static_cast<Acc>(outputs[start + i]) - static_cast<Acc>(targets[start + i]);
        sum += away * away;
        doutputs[start + i] = static_cast<T>(scaled ? away * scale[0] : away);
    }
    sum = reduce_row<32, false>(sum, static_cast<Acc*>(nullptr));
    if (lane == 0) losses[row] = static_cast<Acc>(0.5f) * sum;
}
