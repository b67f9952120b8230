// Simple recurrent networks through all steps, and back.
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

// z (steps, batch, hidden): X W on entry, the whole pre-activation on return. a = act(z).
template <typename T, typename Acc>
struct RnnAhead {
    static constexpr int GATES = 1, STATES = 1;
    T* z;
    const T* ba;
    const T* bx;
    Ahead<T, 1> way;
    struct Biases {
        T ba, bx;
    };
    int act;
    Acc alpha, beta;
    T given;
    unsigned char taken;

    __device__ __forceinline__ Biases biases(int unit) const { return {ba[unit], bx[unit]}; }

    __device__ __forceinline__ void ask(long long example, int unit)
    {
        given = z[example * way.hidden + unit];
        taken = taken_of(way, example);
    }

    __device__ __forceinline__ bool needs(int) const { return taken == 0; }

    __device__ __forceinline__ void go(long long example, int unit, const Biases& of, const Acc (&sum)[GATES],
                                       Acc (&state)[STATES])
    {
        const Acc value = static_cast<Acc>(given) + static_cast<Acc>(of.ba) + static_cast<Acc>(of.bx);
        const T stored = static_cast<T>(value + sum[0]);
        z[example * way.hidden + unit] = stored;
        const Acc next = activation_value(act, static_cast<Acc>(stored), alpha, beta);
        become(way, 0, example, unit, next, taken == 0, state[0]);
    }
};

// dz (steps, batch, hidden) = (da + what comes from the next step) * act'(z).
template <typename T, typename Acc>
struct RnnBack {
    static constexpr int FACTORS = 1, STATES = 1;
    const T* z;
    Back<T, 1> way;
    int act;
    Acc alpha, beta;
    T preactivation, da;
    unsigned char taken;

    __device__ __forceinline__ void ask(long long example, int unit)
    {
        preactivation = z[example * way.hidden + unit];
        da = output_gradient(way, example, unit);
        taken = taken_of(way, example);
    }

    __device__ __forceinline__ void go(long long example, int unit, Acc (&state)[STATES], Acc (&factor)[FACTORS])
    {
        const bool stays = taken == 0;
        const Acc slope = activation_slope(act, static_cast<Acc>(preactivation), alpha, beta);
        const Acc found = (static_cast<Acc>(da) + state[0]) * slope;
        factor[0] = pass_back(way, example, unit, found, stays);
        if (!stays) state[0] = static_cast<Acc>(0);
    }
};

template <typename T, typename Acc>
__global__ void __launch_bounds__(ANY_BOUNDS)
    rnn_sequence_forward(T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ ba,
                         const T* __restrict__ bx, const T* __restrict__ first_a,
                         const unsigned char* __restrict__ mask, T* __restrict__ a, int steps, int batch, int hidden,
                         int by_unit, int by_gate, int by_term, int fours, int has_first, int has_mask, int act,
                         Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    RnnAhead<T, Acc> cell = {
        z, ba, bx, {{a}, {first_a}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}, act, alpha, beta};
    go_ahead<Acc, RnnAhead<T, Acc>, T>(cell, {weights, by_unit, by_gate, by_term}, fours, memory);
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(ANY_BOUNDS)
    rnn_sequence_backward(const T* __restrict__ da, const T* __restrict__ z, const T* __restrict__ weights,
                          const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                          T* __restrict__ da_first, int steps, int batch, int hidden, int by_unit, int by_gate,
                          int by_term, int fours, int has_da, int has_last, int has_mask, int truncate, int act,
                          Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    RnnBack<T, Acc> cell = {
        z, {da, mask, {last_a}, dz, {da_first}, steps, batch, hidden, has_da != 0, has_last, has_mask != 0, truncate},
        act, alpha, beta};
    go_back<Acc, RnnBack<T, Acc>, T>(cell, {weights, by_unit, by_gate, by_term}, fours, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(HELD_BOUNDS)
    rnn_sequence_held_forward(T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ ba,
                              const T* __restrict__ bx, const T* __restrict__ first_a,
                              const unsigned char* __restrict__ mask, T* __restrict__ a, int steps, int batch,
                              int hidden, int by_unit, int by_gate, int by_term, int has_first, int has_mask, int act,
                              Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    RnnAhead<T, Acc> cell = {
        z, ba, bx, {{a}, {first_a}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}, act, alpha, beta};
    go_ahead_held<By, Acc>(cell, Recurrent<T>{weights, by_unit, by_gate, by_term}, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(HELD_BOUNDS)
    rnn_sequence_held_backward(const T* __restrict__ da, const T* __restrict__ z, const T* __restrict__ weights,
                               const unsigned char* __restrict__ mask, const T* __restrict__ last_a,
                               T* __restrict__ dz, T* __restrict__ da_first, int steps, int batch, int hidden,
                               int by_unit, int by_gate, int by_term, int has_da, int has_last, int has_mask,
                               int truncate, int act, Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    RnnBack<T, Acc> cell = {
        z, {da, mask, {last_a}, dz, {da_first}, steps, batch, hidden, has_da != 0, has_last, has_mask != 0, truncate},
        act, alpha, beta};
    go_back_held<By, Acc>(cell, Recurrent<T>{weights, by_unit, by_gate, by_term}, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    rnn_group_forward(T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ ba,
                      const T* __restrict__ bx, const T* __restrict__ first_a, const unsigned char* __restrict__ mask,
                      T* a, unsigned* arrived, int steps, int batch, int hidden, int units, int rows, int chunk,
                      int has_first, int has_mask, int act, Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    RnnAhead<T, Acc> cell = {
        z, ba, bx, {{a}, {first_a}, mask, steps, batch, hidden, has_first != 0, has_mask != 0}, act, alpha, beta};
    go_ahead_together<By, Acc>(cell, weights, arrived, units, rows, chunk, memory);
}

template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    rnn_group_backward(const T* __restrict__ da, const T* __restrict__ z, const T* __restrict__ weights,
                       const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                       T* __restrict__ da_first, Acc* between, unsigned* arrived, int steps, int batch, int hidden,
                       int units, int rows, int chunk, int has_da, int has_last, int has_mask, int truncate, int act,
                       Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    RnnBack<T, Acc> cell = {
        z, {da, mask, {last_a}, dz, {da_first}, steps, batch, hidden, has_da != 0, has_last, has_mask != 0, truncate},
        act, alpha, beta};
    go_back_together<By, Acc>(cell, weights, between, arrived, units, rows, chunk, memory);
}
