// Gated recurrent units through all steps, and back. Blocks of a row of gates: candidate, update z, reset r; of the
// recurrent weights: z, r, candidate; of bias and dz: candidate, z, r, and the candidate's recurrent product m.
#include "common.cuh"
#include "words.cuh"
#include "fragments.cuh"
#include "activation_functions.cuh"
#include "sequence.cuh"
#include "sequence_any.cuh"
#include "sequence_held.cuh"
#include "barrier.cuh"
#include "sequence_group.cuh"
#include "sequence_tensor.cuh"
#include "sequence_cores.cuh"
#include "sequence_ways.cuh"

// gates (steps, batch, 3 hidden): X W on entry, their values on return. m = a_prev W + bias, candidate = tanh(x + r m),
// a = (1 - z) candidate + z a_prev.
template <typename T, typename Acc>
struct GruAhead {
    static constexpr int GATES = 3, STATES = 1;
    T* gates;
    const T* bias;
    T* m;
    Ahead<T, 1> way;
    struct Biases {
        T bias[GATES + 1];
    };
    T given[GATES];
    unsigned char taken;

    __device__ __forceinline__ Biases biases(int unit) const
    {
        Biases of;
#pragma unroll
        for (int k = 0; k <= GATES; ++k) of.bias[k] = bias[k * way.hidden + unit];
        return of;
    }

    __device__ __forceinline__ void ask(long long example, int unit)
    {
#pragma unroll
        for (int k = 0; k < GATES; ++k) given[k] = gates[(example * GATES + k) * way.hidden + unit];
        taken = taken_of(way, example);
    }

    __device__ __forceinline__ bool needs(int) const { return true; }

    // sum: the products of z, r, candidate.
    __device__ __forceinline__ void go(long long example, int unit, const Biases& of, const Acc (&sum)[GATES],
                                       Acc (&state)[STATES])
    {
        T* const gate = gates + example * GATES * way.hidden + unit;
        Acc value[GATES];
#pragma unroll
        for (int k = 0; k < GATES; ++k) value[k] = static_cast<Acc>(given[k]) + static_cast<Acc>(of.bias[k]);
#pragma unroll
        for (int k = 1; k < GATES; ++k) {
            const T stored = static_cast<T>(gate_value(value[k] + sum[k - 1]));
            gate[k * way.hidden] = stored;
            value[k] = static_cast<Acc>(stored);
        }
        const T product = static_cast<T>(sum[2] + static_cast<Acc>(of.bias[GATES]));
        m[example * way.hidden + unit] = product;
        const T candidate = static_cast<T>(tanh(value[0] + value[2] * static_cast<Acc>(product)));
        gate[0] = candidate;
        const Acc mixed = (static_cast<Acc>(1) - value[1]) * static_cast<Acc>(candidate) + value[1] * state[0];
        become(way, 0, example, unit, mixed, taken == 0, state[0]);
    }
};

// dz (steps, batch, 4 hidden).
template <typename T, typename Acc>
struct GruBack {
    static constexpr int FACTORS = 3, STATES = 1, BLOCKS = 4;
    const T* gates;
    const T* m;
    const T* a;
    Back<T, 1> way;
    T gate[FACTORS], m_old, a_old, da;
    unsigned char taken;

    __device__ __forceinline__ void ask(long long example, int unit)
    {
#pragma unroll
        for (int k = 0; k < FACTORS; ++k)
            gate[k] = gates[(example * FACTORS + k) * way.hidden + unit];
        m_old = m[example * way.hidden + unit];
        a_old = a[example * way.hidden + unit];
        da = output_gradient(way, example, unit);
        taken = taken_of(way, example);
    }

    // factor: dz of z, r, m.
    __device__ __forceinline__ void go(long long example, int unit, Acc (&state)[STATES], Acc (&factor)[FACTORS])
    {
        const Acc one = static_cast<Acc>(1);
        const bool stays = taken == 0;
        const Acc candidate = static_cast<Acc>(gate[0]), update = static_cast<Acc>(gate[1]);
        const Acc reset = static_cast<Acc>(gate[2]), product = static_cast<Acc>(m_old);
        const Acc a_prev = static_cast<Acc>(a_old), total = static_cast<Acc>(da) + state[0];
        const Acc dn = total * (one - update) * (one - candidate * candidate);
        const Acc found[FACTORS] = {total * (a_prev - candidate) * update * (one - update),
                                    dn * product * reset * (one - reset), dn * reset};
        pass_back(way, example * BLOCKS, unit, dn, stays);
#pragma unroll
        for (int k = 0; k < FACTORS; ++k)
            factor[k] = pass_back(way, example * BLOCKS + k + 1, unit, found[k], stays);
        if (!stays) state[0] = total * update;
    }
};

template <typename T, typename Acc>
__global__ void __launch_bounds__(ANY_BOUNDS)
    gru_sequence_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                         const T* __restrict__ first_a, const unsigned char* __restrict__ mask, T* __restrict__ m,
                         T* __restrict__ a, int steps, int batch, int hidden, int by_unit, int by_gate, int by_term,
                         int fours, int has_first, int has_mask)
{
    SHARED_MEMORY;
    GruAhead<T, Acc> cell = {
        gates, bias, m, {{a}, {first_a}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}};
    go_ahead<Acc, GruAhead<T, Acc>, T>(cell, {weights, by_unit, by_gate, by_term}, fours, memory);
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(ANY_BOUNDS)
    gru_sequence_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ m,
                          const T* __restrict__ a, const T* __restrict__ weights,
                          const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                          T* __restrict__ da_first, int steps, int batch, int hidden, int by_unit, int by_gate,
                          int by_term, int fours, int has_da, int has_last, int has_mask, int truncate)
{
    SHARED_MEMORY;
    GruBack<T, Acc> cell = {
        gates, m, a, {da, mask, {last_a}, dz, {da_first}, steps, batch, hidden, has_da != 0, has_last, has_mask != 0,
        truncate}};
    go_back<Acc, GruBack<T, Acc>, T>(cell, {weights, by_unit, by_gate, by_term}, fours, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(HELD_BOUNDS)
    gru_sequence_held_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                              const T* __restrict__ first_a, const unsigned char* __restrict__ mask,
                              T* __restrict__ m, T* __restrict__ a, int steps, int batch, int hidden, int by_unit,
                              int by_gate, int by_term, int has_first, int has_mask)
{
    SHARED_MEMORY;
    GruAhead<T, Acc> cell = {
        gates, bias, m, {{a}, {first_a}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}};
    go_ahead_held<By, Acc>(cell, Recurrent<T>{weights, by_unit, by_gate, by_term}, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(HELD_BOUNDS)
    gru_sequence_held_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ m,
                               const T* __restrict__ a, const T* __restrict__ weights,
                               const unsigned char* __restrict__ mask, const T* __restrict__ last_a,
                               T* __restrict__ dz, T* __restrict__ da_first, int steps, int batch, int hidden,
                               int by_unit, int by_gate, int by_term, int has_da, int has_last, int has_mask,
                               int truncate)
{
    SHARED_MEMORY;
    GruBack<T, Acc> cell = {
        gates, m, a, {da, mask, {last_a}, dz, {da_first}, steps, batch, hidden, has_da != 0, has_last, has_mask != 0,
        truncate}};
    go_back_held<By, Acc>(cell, Recurrent<T>{weights, by_unit, by_gate, by_term}, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    gru_group_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                      const T* __restrict__ first_a, const unsigned char* __restrict__ mask, T* __restrict__ m, T* a,
                      unsigned* arrived, int steps, int batch, int hidden, int units, int rows, int chunk,
                      int has_first, int has_mask)
{
    SHARED_MEMORY;
    GruAhead<T, Acc> cell = {
        gates, bias, m, {{a}, {first_a}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}};
    go_ahead_together<By, Acc>(cell, weights, arrived, units, rows, chunk, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    gru_group_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ m,
                       const T* __restrict__ a, const T* __restrict__ weights, const unsigned char* __restrict__ mask,
                       const T* __restrict__ last_a, T* __restrict__ dz, T* __restrict__ da_first, Acc* between,
                       unsigned* arrived, int steps, int batch, int hidden, int units, int rows, int chunk,
                       int has_da, int has_last, int has_mask, int truncate)
{
    SHARED_MEMORY;
    GruBack<T, Acc> cell = {
        gates, m, a, {da, mask, {last_a}, dz, {da_first}, steps, batch, hidden, has_da != 0, has_last, has_mask != 0,
        truncate}};
    go_back_together<By, Acc>(cell, weights, between, arrived, units, rows, chunk, memory);
}
