// Gated recurrent units through all steps, and back. Blocks of a row of gates: candidate, update z, reset r; of the
// recurrent weights: z, r, candidate; of bias and dz: candidate, z, r, and the candidate's recurrent product m.
#include "common.cuh"
#include "activation_functions.cuh"
#include "sequence.cuh"

#define GRU_GATES 3
#define GRU_BLOCKS 4

// gates (steps, batch, 3 hidden): X W on entry, their values on return. a (steps + 1, batch, hidden): before the first
// step and after each; where the mask is zero it stays. m = a_prev W + bias, candidate = tanh(x + r m),
// a = (1 - z) candidate + z a_prev.
template <typename T, typename Acc, int ROWS, int HELD>
__global__ void __launch_bounds__(SEQUENCE_BOUNDS)
    gru_sequence_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                         const T* __restrict__ first_a, const unsigned char* __restrict__ mask, T* __restrict__ m,
                         T* __restrict__ a, int steps, int batch, int hidden, int by_unit, int by_gate, int by_term,
                         int fours, int has_first, int has_mask)
{
    SHARED_MEMORY;
    const Seat seat = seat_of<ROWS>(batch);
    Weights<T, Acc, GRU_GATES, HELD> w = {weights, by_unit, by_gate, by_term, cut_of<HELD>(hidden), seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = ROWS * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // a before this step, and before the next
    settle(w, seat, vectors + 2 * buffer);
    clear(vectors, 2 * buffer);
    __syncthreads();
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
        const long long number = static_cast<long long>(seat.row) * hidden + unit;
        a[number] = has_first ? first_a[number] : static_cast<T>(0);
        vectors[seat.lane * apart + place_of(w.cut, unit)] = static_cast<Acc>(a[number]);
    }
    __syncthreads();
    for (int t = 0; t < steps; ++t) {
        const Acc* const now = vectors + t % 2 * buffer;
        Acc* const next = vectors + (t + 1) % 2 * buffer;
        const long long example = static_cast<long long>(t) * batch + seat.row;
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            const bool works = seat.works && unit < hidden;
            T* const gate = gates + example * GRU_GATES * hidden + unit;
            Acc value[GRU_GATES];  // asked for before the products, there after them
#pragma unroll
            for (int k = 0; k < GRU_GATES; ++k)
                value[k] = works ? static_cast<Acc>(gate[k * hidden]) + static_cast<Acc>(bias[k * hidden + unit])
                                 : static_cast<Acc>(0);
            Acc sum[ROWS][GRU_GATES];
            multiply(w, now, unit, sum);
            if (!works) continue;
#pragma unroll
            for (int k = 1; k < GRU_GATES; ++k) {
                const T stored = static_cast<T>(logistic(value[k] + of_row(sum, seat.lane, k - 1)));
                gate[k * hidden] = stored;
                value[k] = static_cast<Acc>(stored);
            }
            const T product = static_cast<T>(of_row(sum, seat.lane, 2) + static_cast<Acc>(bias[3 * hidden + unit]));
            const T candidate = static_cast<T>(tanh(value[0] + value[2] * static_cast<Acc>(product)));
            gate[0] = candidate;
            m[example * hidden + unit] = product;
            const bool stays = has_mask && mask[example] == 0;
            const int spot = seat.lane * apart + place_of(w.cut, unit);
            const Acc mixed = (static_cast<Acc>(1) - value[1]) * static_cast<Acc>(candidate) + value[1] * now[spot];
            const T shown = static_cast<T>(stays ? now[spot] : mixed);
            a[(example + batch) * hidden + unit] = shown;
            next[spot] = static_cast<Acc>(shown);
        }
        __syncthreads();
    }
}

// What a thread needs of a step on the way back, of its example and unit.
template <typename Acc>
struct GruStep {
    Acc gate[GRU_GATES], m, a_prev, da;
    bool left_out;
};

template <typename T, typename Acc>
__device__ __forceinline__ GruStep<Acc> read_gru_step(const T* gates, const T* m, const T* a, const T* da,
                                                      const unsigned char* mask, long long example, int hidden,
                                                      int unit, bool has_da, bool has_mask)
{
    GruStep<Acc> step;
#pragma unroll
    for (int k = 0; k < GRU_GATES; ++k)
        step.gate[k] = static_cast<Acc>(gates[(example * GRU_GATES + k) * hidden + unit]);
    step.m = static_cast<Acc>(m[example * hidden + unit]);
    step.a_prev = static_cast<Acc>(a[example * hidden + unit]);
    step.da = has_da ? static_cast<Acc>(da[example * hidden + unit]) : static_cast<Acc>(0);
    step.left_out = has_mask && mask[example] == 0;
    return step;
}

// dz (steps, batch, 4 hidden); da_first (batch, hidden): the gradient of the state before the first step. last_a: that
// of the last state, if has_last.
template <typename T, typename Acc, int ROWS, int HELD>
__global__ void __launch_bounds__(SEQUENCE_BOUNDS)
    gru_sequence_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ m,
                          const T* __restrict__ a, const T* __restrict__ weights,
                          const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                          T* __restrict__ da_first, int steps, int batch, int hidden, int by_unit, int by_gate,
                          int by_term, int fours, int has_da, int has_last, int has_mask, int truncate)
{
    SHARED_MEMORY;
    constexpr bool ONE_UNIT = HELD > 0;  // a thread has no second one, so it can ask for a step ahead
    const Seat seat = seat_of<ROWS>(batch);
    Weights<T, Acc, GRU_GATES, HELD> w = {weights, by_unit, by_gate, by_term, cut_of<HELD>(hidden), seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = ROWS * GRU_GATES * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // dz of this step, and of the last one: z, r, m
    Acc* const da_next = settle(w, seat, vectors + 2 * buffer) + seat.lane * hidden;
    clear(vectors, 2 * buffer);
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units)
        da_next[unit] = has_last ? static_cast<Acc>(last_a[static_cast<long long>(seat.row) * hidden + unit])
                                 : static_cast<Acc>(0);
    GruStep<Acc> step = {};
    const bool has_unit = seat.works && seat.first_unit < hidden;
    if (ONE_UNIT && has_unit)
        step = read_gru_step<T, Acc>(gates, m, a, da, mask, static_cast<long long>(steps - 1) * batch + seat.row,
                                     hidden, seat.first_unit, has_da, has_mask);
    __syncthreads();
    for (int t = steps - 1; t >= 0; --t) {
        Acc* const now = vectors + t % 2 * buffer;
        const long long example = static_cast<long long>(t) * batch + seat.row;
        for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
            if (!ONE_UNIT)
                step = read_gru_step<T, Acc>(gates, m, a, da, mask, example, hidden, unit, has_da, has_mask);
            if (ends_stretch(t, steps, truncate)) da_next[unit] = static_cast<Acc>(0);
            const Acc one = static_cast<Acc>(1);
            const Acc candidate = step.gate[0];
            const Acc update = step.gate[1];
            const Acc reset = step.gate[2];
            const Acc total = step.da + da_next[unit];
            const Acc dn = total * (one - update) * (one - candidate * candidate);
            const Acc found[GRU_BLOCKS] = {dn, total * (step.a_prev - candidate) * update * (one - update),
                                           dn * step.m * reset * (one - reset), dn * reset};
            const int spot = seat.lane * GRU_GATES * apart + place_of(w.cut, unit);
#pragma unroll
            for (int k = 0; k < GRU_BLOCKS; ++k) {
                const T stored = static_cast<T>(step.left_out ? static_cast<Acc>(0) : found[k]);
                dz[(example * GRU_BLOCKS + k) * hidden + unit] = stored;
                if (k > 0) now[spot + (k - 1) * apart] = static_cast<Acc>(stored);
            }
            if (!step.left_out) da_next[unit] = total * update;  // what does not go through the products
        }
        __syncthreads();
        const bool left_out = step.left_out;
        if (ONE_UNIT && has_unit && t > 0)
            step = read_gru_step<T, Acc>(gates, m, a, da, mask, example - batch, hidden, seat.first_unit, has_da,
                                         has_mask);
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            Acc sum[ROWS][1];
            multiply(w, now, unit, sum);
            if (seat.works && unit < hidden && !left_out) da_next[unit] += of_row(sum, seat.lane, 0);
        }
    }
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units)
        da_first[static_cast<long long>(seat.row) * hidden + unit] = static_cast<T>(da_next[unit]);
}
