// Long short-term memory through all steps, and back. Blocks of a row of gates: forget, update, candidate, output.
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

// gates (steps, batch, 4 hidden): X W on entry, their values on return. States a and c = f c_prev + u candidate,
// a = o tanh(c).
template <typename T, typename Acc>
struct LstmAhead {
    static constexpr int GATES = 4, STATES = 2;
    T* gates;
    const T* bias;
    Ahead<T, 2> way;
    struct Biases {
        T bias[GATES];
    };
    T given[GATES];
    unsigned char taken;

    __device__ __forceinline__ Biases biases(int unit) const
    {
        Biases of;
#pragma unroll
        for (int k = 0; k < GATES; ++k) of.bias[k] = bias[k * way.hidden + unit];
        return of;
    }

    __device__ __forceinline__ void ask(long long example, int unit)
    {
#pragma unroll
        for (int k = 0; k < GATES; ++k) given[k] = gates[(example * GATES + k) * way.hidden + unit];
        taken = taken_of(way, example);
    }

    __device__ __forceinline__ bool needs(int state) const { return state == 1 || taken == 0; }

    __device__ __forceinline__ void go(long long example, int unit, const Biases& of, const Acc (&sum)[GATES],
                                       Acc (&state)[STATES])
    {
        const bool stays = taken == 0;
        Acc value[GATES];
#pragma unroll
        for (int k = 0; k < GATES; ++k) {
            const Acc before = static_cast<Acc>(given[k]) + static_cast<Acc>(of.bias[k]) + sum[k];
            const T stored = static_cast<T>(k == 2 ? tanh(before) : gate_value(before));
            gates[(example * GATES + k) * way.hidden + unit] = stored;
            value[k] = static_cast<Acc>(stored);
        }
        become(way, 1, example, unit, value[0] * state[1] + value[1] * value[2], stays, state[1]);
        become(way, 0, example, unit, value[3] * tanh(state[1]), stays, state[0]);
    }
};

// dz (steps, batch, 4 hidden) of all gates; gradients of a and c.
template <typename T, typename Acc>
struct LstmBack {
    static constexpr int FACTORS = 4, STATES = 2;
    const T* gates;
    const T* c;
    Back<T, 2> way;
    T gate[FACTORS], c_old, c_new, da;
    unsigned char taken;

    __device__ __forceinline__ void ask(long long example, int unit)
    {
#pragma unroll
        for (int k = 0; k < FACTORS; ++k)
            gate[k] = gates[(example * FACTORS + k) * way.hidden + unit];
        c_old = c[example * way.hidden + unit];
        c_new = c[(example + way.batch) * way.hidden + unit];
        da = output_gradient(way, example, unit);
        taken = taken_of(way, example);
    }

    __device__ __forceinline__ void go(long long example, int unit, Acc (&state)[STATES], Acc (&factor)[FACTORS])
    {
        const Acc one = static_cast<Acc>(1);
        const bool stays = taken == 0;
        const Acc forget = static_cast<Acc>(gate[0]), update = static_cast<Acc>(gate[1]);
        const Acc candidate = static_cast<Acc>(gate[2]), output = static_cast<Acc>(gate[3]);
        const Acc c_prev = static_cast<Acc>(c_old), squashed = tanh(static_cast<Acc>(c_new));
        const Acc total = static_cast<Acc>(da) + state[0];
        const Acc dc = state[1] + total * output * (one - squashed * squashed);
        const Acc found[FACTORS] = {
            dc * c_prev * forget * (one - forget), dc * candidate * update * (one - update),
            dc * update * (one - candidate * candidate), total * squashed * output * (one - output)};
#pragma unroll
        for (int k = 0; k < FACTORS; ++k) factor[k] = pass_back(way, example * FACTORS + k, unit, found[k], stays);
        if (stays) return;
        state[0] = static_cast<Acc>(0);
        state[1] = dc * forget;
    }
};

template <typename T, typename Acc>
__global__ void __launch_bounds__(ANY_BOUNDS)
    lstm_sequence_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                          const T* __restrict__ first_a, const T* __restrict__ first_c,
                          const unsigned char* __restrict__ mask, T* __restrict__ a, T* __restrict__ c, int steps,
                          int batch, int hidden, int by_unit, int by_gate, int by_term, int fours, int has_first,
                          int has_mask)
{
    SHARED_MEMORY;
    LstmAhead<T, Acc> cell = {
        gates, bias, {{a, c}, {first_a, first_c}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}};
    go_ahead<Acc, LstmAhead<T, Acc>, T>(cell, {weights, by_unit, by_gate, by_term}, fours, memory);
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(ANY_BOUNDS)
    lstm_sequence_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ c,
                           const T* __restrict__ weights, const unsigned char* __restrict__ mask,
                           const T* __restrict__ last_a, const T* __restrict__ last_c, T* __restrict__ dz,
                           T* __restrict__ da_first, T* __restrict__ dc_first, int steps, int batch, int hidden,
                           int by_unit, int by_gate, int by_term, int fours, int has_da, int has_last, int has_mask,
                           int truncate)
{
    SHARED_MEMORY;
    LstmBack<T, Acc> cell = {
        gates, c, {da, mask, {last_a, last_c}, dz, {da_first, dc_first}, steps, batch, hidden, has_da != 0, has_last,
        has_mask != 0, truncate}};
    go_back<Acc, LstmBack<T, Acc>, T>(cell, {weights, by_unit, by_gate, by_term}, fours, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(HELD_BOUNDS)
    lstm_sequence_held_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                               const T* __restrict__ first_a, const T* __restrict__ first_c,
                               const unsigned char* __restrict__ mask, T* __restrict__ a, T* __restrict__ c,
                               int steps, int batch, int hidden, int by_unit, int by_gate, int by_term, int has_first,
                               int has_mask)
{
    SHARED_MEMORY;
    LstmAhead<T, Acc> cell = {
        gates, bias, {{a, c}, {first_a, first_c}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}};
    go_ahead_held<By, Acc>(cell, Recurrent<T>{weights, by_unit, by_gate, by_term}, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(HELD_BOUNDS)
    lstm_sequence_held_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ c,
                                const T* __restrict__ weights, const unsigned char* __restrict__ mask,
                                const T* __restrict__ last_a, const T* __restrict__ last_c, T* __restrict__ dz,
                                T* __restrict__ da_first, T* __restrict__ dc_first, int steps, int batch, int hidden,
                                int by_unit, int by_gate, int by_term, int has_da, int has_last, int has_mask,
                                int truncate)
{
    SHARED_MEMORY;
    LstmBack<T, Acc> cell = {
        gates, c, {da, mask, {last_a, last_c}, dz, {da_first, dc_first}, steps, batch, hidden, has_da != 0, has_last,
        has_mask != 0, truncate}};
    go_back_held<By, Acc>(cell, Recurrent<T>{weights, by_unit, by_gate, by_term}, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    lstm_group_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                       const T* __restrict__ first_a, const T* __restrict__ first_c,
                       const unsigned char* __restrict__ mask, T* a, T* __restrict__ c, unsigned* arrived, int steps,
                       int batch, int hidden, int units, int rows, int chunk, int has_first, int has_mask)
{
    SHARED_MEMORY;
    LstmAhead<T, Acc> cell = {
        gates, bias, {{a, c}, {first_a, first_c}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}};
    go_ahead_together<By, Acc>(cell, weights, arrived, units, rows, chunk, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    lstm_group_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ c,
                        const T* __restrict__ weights, const unsigned char* __restrict__ mask,
                        const T* __restrict__ last_a, const T* __restrict__ last_c, T* __restrict__ dz,
                        T* __restrict__ da_first, T* __restrict__ dc_first, Acc* between, unsigned* arrived,
                        int steps, int batch, int hidden, int units, int rows, int chunk, int has_da, int has_last,
                        int has_mask, int truncate)
{
    SHARED_MEMORY;
    LstmBack<T, Acc> cell = {
        gates, c, {da, mask, {last_a, last_c}, dz, {da_first, dc_first}, steps, batch, hidden, has_da != 0, has_last,
        has_mask != 0, truncate}};
    go_back_together<By, Acc>(cell, weights, between, arrived, units, rows, chunk, memory);
}
