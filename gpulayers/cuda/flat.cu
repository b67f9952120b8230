// What a planned step does once for all parameters, which lie one after the other in `param`.
//
// `sections` has four numbers for each parameter: where it starts in `param`; where its gradient starts in `work`, into
// how many parts the sums of that are cut, and how far apart those lie. What changes from step to step lies on the
// device, so that a captured step reads it anew: `rates`, a learning rate for each section, and `count`, the number of
// the step.
#include "common.cuh"

#define FLAT_BLOCK 256
#define NUMBERS 4

__device__ __forceinline__ int section_of(const long long* __restrict__ sections, int count, long long number)
{
    int section = 0;
    while (section + 1 < count && number >= sections[(section + 1) * NUMBERS]) ++section;
    return section;
}

// The sum of a gradient's parts, in their order.
template <typename Acc>
__device__ __forceinline__ Acc gradient_at(const Acc* __restrict__ work, const long long* __restrict__ section,
                                           long long number)
{
    const long long place = section[1] + (number - section[0]);
    Acc sum = static_cast<Acc>(0);
    for (long long part = 0; part < section[2]; ++part) sum += work[place + part * section[3]];
    return sum;
}

// gradient = the whole sums; total = param.size
template <typename Acc>
__global__ void sum_sections(const Acc* __restrict__ work, const long long* __restrict__ sections,
                             Acc* __restrict__ gradient, int total, int count)
{
    const int number = thread_number<int>();
    if (number >= total) return;
    gradient[number] = gradient_at(work, sections + section_of(sections, count, number) * NUMBERS, number);
}

enum Rule { SGD_RULE, ADAGRAD_RULE, RMSPROP_RULE, ADAM_RULE };

// The rules of update.cu for all parameters at once. `first` is velocity, cache or mean, `second` Adam's var. a and b
// are momentum, or decay and 1 - decay, or those of mean; c and d those of var; log_a and log_c the logarithms of
// Adam's decays, from which 1 - decay^t = -expm1(t log(decay)) comes without cancellation; decay shrinks the weights.
template <typename Acc>
__global__ void flat_update(Acc* __restrict__ param, Acc* __restrict__ first, Acc* __restrict__ second,
                            const Acc* __restrict__ work, const long long* __restrict__ sections,
                            const Acc* __restrict__ rates, const int* __restrict__ step, int total, int count, int rule,
                            Acc a, Acc b, Acc c, Acc d, Acc log_a, Acc log_c, Acc eps, Acc decay)
{
    const int number = thread_number<int>();
    if (number >= total) return;
    const int section = section_of(sections, count, number);
    const Acc g = gradient_at(work, sections + section * NUMBERS, number);
    const Acc rate = rates[section];
    const Acc old = param[number];
    if (rule == SGD_RULE) {
        const Acc velocity = a * first[number] + rate * g;
        first[number] = velocity;
        param[number] = old - velocity;
    } else if (rule == ADAM_RULE) {
        const Acc t = static_cast<Acc>(step[0]);
        const Acc mean = a * first[number] + b * g;
        const Acc var = c * second[number] + d * (g * g);
        first[number] = mean;
        second[number] = var;
        const Acc root = sqrt(var / -expm1(t * log_c));
        param[number] = old - rate * decay * old - rate * (mean / -expm1(t * log_a)) / (root + eps);
    } else {
        const Acc cache = rule == ADAGRAD_RULE ? first[number] + g * g : a * first[number] + b * (g * g);
        first[number] = cache;
        param[number] = old - rate * g / (sqrt(cache) + eps);
    }
}

// loss = scale * the sum of the losses, in a fixed order, by one block; and one step more is counted.
template <typename Acc>
__global__ void __launch_bounds__(FLAT_BLOCK)
    finish_loss(const Acc* __restrict__ losses, Acc* __restrict__ loss, int* __restrict__ step, int count, Acc scale)
{
    __shared__ Acc part[FLAT_BLOCK];
    const int thread = threadIdx.x;
    Acc sum = static_cast<Acc>(0);
    for (int i = thread; i < count; i += FLAT_BLOCK) sum += losses[i];
    part[thread] = sum;
    __syncthreads();
    for (int half = FLAT_BLOCK / 2; half > 0; half /= 2) {
        if (thread < half) part[thread] += part[thread + half];
        __syncthreads();
    }
    if (thread > 0) return;
    loss[0] = part[0] * scale;
    step[0] += 1;
}
