// What a planned step does once for all parameters, which lie one after the other in `param`. What changes from step to
// step lies on the device, so that a captured step reads it anew: `rates`, a learning rate for each section, and `step`,
// the number of the step.
#include "common.cuh"
#include "flat.cuh"

// gradient = the whole sums, divided by scale[0] if scaled
template <typename Acc>
__global__ void sum_sections(const Acc* __restrict__ work, const long long* __restrict__ sections,
                             const Acc* __restrict__ scale, Acc* __restrict__ gradient, int count, int scaled)
{
    const int number = thread_number<int>();
    const long long* section = sections + section_of(sections, count, number) * NUMBERS;
    if (number >= section[4]) return;
    const Acc sum = gradient_at(work, section, number);
    gradient[number] = scaled ? sum / scale[0] : sum;
}

enum Rule { SGD_RULE, ADAGRAD_RULE, RMSPROP_RULE, ADAM_RULE, NESTEROV_RULE };

// What is done to a gradient before a rule sees it, in this order; see judge.cu.
template <typename Acc>
struct Treatment {
    const Acc* factors;  // of each section: what clips its norm
    const Acc* inverse;  // one over the loss scale
    bool clips_norm, scaled;
    Acc limit, pull;  // of a single number; of the weights themselves (L2)
};

template <typename Acc>
__device__ __forceinline__ Acc treated(const Treatment<Acc>& treatment, Acc gradient, int section, Acc weight)
{
    if (treatment.scaled) gradient *= treatment.inverse[0];
    gradient = clipped(gradient, treatment.limit);
    if (treatment.clips_norm) gradient *= treatment.factors[section];
    return gradient + treatment.pull * weight;
}

// The weight that the rule changes. That of a half type is a copy in Acc (`param`); where the weight of the network is
// not the copy rounded, somebody has changed it, and it counts itself.
template <typename T, typename Acc>
__device__ __forceinline__ Acc weight_of(const Acc* __restrict__ param, const T* __restrict__ narrow, int number)
{
    const Acc weight = param[number];
    if constexpr (sizeof(T) < sizeof(Acc)) {
        const Acc own = static_cast<Acc>(narrow[number]);
        if (static_cast<Acc>(static_cast<T>(weight)) != own) return own;
    }
    return weight;
}

// The rules of update.cu for all parameters at once. `first` is velocity, cache or mean, `second` Adam's var. a and b
// are momentum, or decay and 1 - decay, or those of mean; c and d those of var; log_a and log_c the logarithms of
// Adam's decays, from which 1 - decay^t = -expm1(t log(decay)) comes without cancellation; decay shrinks the weights.
// Of a half type T `narrow` gets the weights rounded. scaled: nothing is done if good[0] is 0.
template <typename T, typename Acc>
__global__ void flat_update(Acc* __restrict__ param, Acc* __restrict__ first, Acc* __restrict__ second,
                            T* __restrict__ narrow, const Acc* __restrict__ work,
                            const long long* __restrict__ sections, const Acc* __restrict__ rates,
                            const int* __restrict__ step, const Acc* __restrict__ factors,
                            const Acc* __restrict__ inverse, const int* __restrict__ good, int count, int rule,
                            int clips_norm, int scaled, Acc a, Acc b, Acc c, Acc d, Acc log_a, Acc log_c, Acc eps,
                            Acc decay, Acc limit, Acc pull)
{
    const int number = thread_number<int>();
    if (scaled && good[0] == 0) return;
    const int section = section_of(sections, count, number);
    if (number >= sections[section * NUMBERS + 4]) return;
    const Treatment<Acc> treatment = {factors, inverse, clips_norm != 0, scaled != 0, limit, pull};
    const Acc old = weight_of<T, Acc>(param, narrow, number);
    const Acc g = treated(treatment, gradient_at(work, sections + section * NUMBERS, number), section, old);
    const Acc rate = rates[section];
    Acc fresh = old;
    if (rule == SGD_RULE || rule == NESTEROV_RULE) {
        const Acc velocity = a * first[number] + rate * g;
        first[number] = velocity;
        fresh -= rule == SGD_RULE ? velocity : a * velocity + rate * g;
    } else if (rule == ADAM_RULE) {
        const Acc t = static_cast<Acc>(step[0]);
        const Acc mean = a * first[number] + b * g;
        const Acc var = c * second[number] + d * (g * g);
        first[number] = mean;
        second[number] = var;
        const Acc root = sqrt(var / -expm1(t * log_c));
        fresh = old - rate * decay * old - rate * (mean / -expm1(t * log_a)) / (root + eps);
    } else {
        const Acc cache = rule == ADAGRAD_RULE ? first[number] + g * g : a * first[number] + b * (g * g);
        first[number] = cache;
        fresh = old - rate * g / (sqrt(cache) + eps);
    }
    param[number] = fresh;
    if constexpr (sizeof(T) < sizeof(Acc)) narrow[number] = static_cast<T>(fresh);
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
