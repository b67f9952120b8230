// What a planned step finds out about all gradients before it updates: whether they are finite, so that the loss scale
// of half types can follow them, and how long each one is, so that it can be clipped. The host is told nothing.
//
// Gradients are looked at in chunks (section, first, last), a block each; `bounds` says where each section's begin.
#include "common.cuh"
#include "rows.cuh"
#include "flat.cuh"

#define CHUNK 2048

// Whether it is so in any thread of the block.
template <typename Acc>
__device__ __forceinline__ bool anywhere(bool so, Acc* warps)
{
    return reduce_row<BLOCK, true>(static_cast<Acc>(so), warps) > static_cast<Acc>(0);
}

// Of each chunk: `peaks`, the largest absolute value but at least `longest`, NaN where a number is not finite; and
// `squares`, the sum of squares of (value / peak), which can neither overflow nor all vanish. The values are those that
// update sees: divided by the loss scale if scaled, cut to `limit`. What is beyond `top` before that, the largest number
// of a half type, is not finite: the layers by themselves would have stored infinity.
template <typename Acc>
__global__ void survey_gradients(const Acc* __restrict__ work, const long long* __restrict__ sections,
                                 const long long* __restrict__ chunks, const Acc* __restrict__ scale,
                                 Acc* __restrict__ peaks, Acc* __restrict__ squares, int scaled, Acc limit, Acc longest,
                                 Acc top)
{
    __shared__ Acc warps[BLOCK / 32];
    const long long* chunk = chunks + 3 * static_cast<long long>(blockIdx.x);
    const long long* section = sections + chunk[0] * NUMBERS;
    Acc own[CHUNK / BLOCK];
    Acc peak = longest;
    bool odd = false;
#pragma unroll
    for (int i = 0; i < CHUNK / BLOCK; ++i) {
        const long long number = chunk[1] + i * BLOCK + static_cast<int>(threadIdx.x);
        own[i] = static_cast<Acc>(0);
        if (number >= chunk[2]) continue;
        Acc value = gradient_at(work, section, number);
        if (!(value <= top) || !(value >= -top)) odd = true;  // NaN is not either
        if (scaled) value /= scale[0];
        own[i] = clipped(value, limit);
        peak = larger(peak, own[i] < static_cast<Acc>(0) ? -own[i] : own[i]);
    }
    peak = reduce_row<BLOCK, true>(peak, warps);
    Acc sum = static_cast<Acc>(0);
#pragma unroll
    for (int i = 0; i < CHUNK / BLOCK; ++i) sum += own[i] / peak * (own[i] / peak);
    sum = reduce_row<BLOCK, false>(sum, warps);
    odd = anywhere(odd, warps);
    if (threadIdx.x > 0) return;
    peaks[blockIdx.x] = odd ? not_a_number<Acc>() : peak;
    squares[blockIdx.x] = sum;
}

// Block k: the factor min(1, longest / norm) of section k; NaN where a number is not finite. (Pascanu, Mikolov &
// Bengio, "On the difficulty of training recurrent neural networks", 2013, algorithm 1.)
template <typename Acc>
__device__ __forceinline__ void clip_section(const Acc* __restrict__ peaks, const Acc* __restrict__ squares, int from,
                                             int to, Acc longest, Acc* __restrict__ factor, Acc* warps)
{
    Acc peak = longest;
    bool odd = false;
    for (int k = from + static_cast<int>(threadIdx.x); k < to; k += BLOCK) {
        if (peaks[k] != peaks[k]) odd = true;
        peak = larger(peak, peaks[k]);
    }
    peak = reduce_row<BLOCK, true>(peak, warps);
    odd = anywhere(odd, warps);
    Acc sum = static_cast<Acc>(0);
    for (int k = from + static_cast<int>(threadIdx.x); k < to; k += BLOCK)
        sum += squares[k] * (peaks[k] / peak * (peaks[k] / peak));
    sum = reduce_row<BLOCK, false>(sum, warps);
    if (threadIdx.x > 0) return;
    const Acc ratio = longest / peak;
    factor[0] = odd ? not_a_number<Acc>() : ratio / larger(sqrt(sum), ratio);
}

// The loss scale after a step: halved if a gradient was not finite, which is counted and takes the step back; doubled
// after `interval` good ones. (Micikevicius et al., "Mixed precision training", 2018, section 3.2.)
// counts: good steps since the last change, steps left out, those that were not finite at the smallest scale either.
template <typename Acc>
__device__ __forceinline__ void follow_scale(bool finite, Acc* __restrict__ scale, Acc* __restrict__ inverse,
                                             int* __restrict__ good, int* __restrict__ counts, int* __restrict__ step,
                                             int interval, Acc smallest, Acc largest, bool scaled)
{
    const Acc now = scale[0];
    inverse[0] = scaled ? static_cast<Acc>(1) / now : static_cast<Acc>(1);
    good[0] = finite;
    if (!finite) {
        counts[0] = 0;
        counts[1] += 1;
        if (now <= smallest) counts[2] += 1;
        if (now > smallest) scale[0] = now / static_cast<Acc>(2);
        step[0] -= 1;
        return;
    }
    counts[0] += 1;
    if (counts[0] < interval) return;
    counts[0] = 0;
    if (now < largest) scale[0] = now * static_cast<Acc>(2);
}

// A block a section for what clips its norm, if clips_norm; the first one judges, if judges. scaled: the gradients are
// too long by the loss scale.
template <typename Acc>
__global__ void judge_gradients(const Acc* __restrict__ peaks, const Acc* __restrict__ squares,
                                const int* __restrict__ bounds, Acc* __restrict__ factors, Acc* __restrict__ scale,
                                Acc* __restrict__ inverse, int* __restrict__ good, int* __restrict__ counts,
                                int* __restrict__ step, int chunks, int clips_norm, int judges, int scaled,
                                int interval, Acc longest, Acc smallest, Acc largest)
{
    __shared__ Acc warps[BLOCK / 32];
    const int section = static_cast<int>(blockIdx.x);
    if (clips_norm)
        clip_section(peaks, squares, bounds[section], bounds[section + 1], longest, factors + section, warps);
    if (!judges || section > 0) return;
    bool odd = false;
    for (int k = threadIdx.x; k < chunks; k += BLOCK)
        if (peaks[k] != peaks[k]) odd = true;
    odd = anywhere(odd, warps);
    if (threadIdx.x > 0) return;
    follow_scale(!odd, scale, inverse, good, counts, step, interval, smallest, largest,
                 scaled != 0);
}
