// Gated recurrent units through all steps, and back. Blocks of a row of gates: candidate, update z, reset r; of the
// recurrent weights: z, r, candidate; of bias and dz: candidate, z, r, and the candidate's recurrent product m.
#include "common.cuh"
#include "words.cuh"
#include "fragments.cuh"
#include "activation_functions.cuh"
#include "sequence.cuh"
#include "barrier.cuh"
#include "sequence_group.cuh"
#include "sequence_tensor.cuh"

#define GRU_GATES 3
#define GRU_BLOCKS 4

// The gates' values in place of their pre-activations, and the candidate's product, rounded to what is stored of them.
// value: candidate, z, r without their products; sum: the products of z, r, candidate.
template <typename T, typename Acc>
__device__ __forceinline__ void open_gates(Acc (&value)[GRU_GATES], const Acc (&sum)[GRU_GATES], Acc bias, T* gate, T* m,
                                           int hidden)
{
#pragma unroll
    for (int k = 1; k < GRU_GATES; ++k) {
        const T stored = static_cast<T>(logistic(value[k] + sum[k - 1]));
        gate[k * hidden] = stored;
        value[k] = static_cast<Acc>(stored);
    }
    const T product = static_cast<T>(sum[2] + bias);
    const T candidate = static_cast<T>(tanh(value[0] + value[2] * static_cast<Acc>(product)));
    gate[0] = candidate;
    m[0] = product;
    value[0] = static_cast<Acc>(candidate);
}

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
            Acc products[GRU_GATES];
#pragma unroll
            for (int k = 0; k < GRU_GATES; ++k) products[k] = of_row(sum, seat.lane, k);
            open_gates(value, products, static_cast<Acc>(bias[3 * hidden + unit]), gate, m + example * hidden + unit,
                       hidden);
            const bool stays = has_mask && mask[example] == 0;
            const int spot = seat.lane * apart + place_of(w.cut, unit);
            const Acc mixed = (static_cast<Acc>(1) - value[1]) * value[0] + value[1] * now[spot];
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

// The gradients of the blocks, and of the state before the step but for what goes through the products.
template <typename Acc>
struct GruGradient {
    Acc dz[GRU_BLOCKS], da;
};

template <typename Acc>
__device__ __forceinline__ GruGradient<Acc> gru_gradient(const GruStep<Acc>& step, Acc da_next)
{
    const Acc one = static_cast<Acc>(1);
    const Acc candidate = step.gate[0];
    const Acc update = step.gate[1];
    const Acc reset = step.gate[2];
    const Acc total = step.da + da_next;
    const Acc dn = total * (one - update) * (one - candidate * candidate);
    return {{dn, total * (step.a_prev - candidate) * update * (one - update),
             dn * step.m * reset * (one - reset), dn * reset},
            total * update};
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
            const GruGradient<Acc> found = gru_gradient(step, da_next[unit]);
            const int spot = seat.lane * GRU_GATES * apart + place_of(w.cut, unit);
#pragma unroll
            for (int k = 0; k < GRU_BLOCKS; ++k) {
                const T stored = static_cast<T>(step.left_out ? static_cast<Acc>(0) : found.dz[k]);
                dz[(example * GRU_BLOCKS + k) * hidden + unit] = stored;
                if (k > 0) now[spot + (k - 1) * apart] = static_cast<Acc>(stored);
            }
            if (!step.left_out) da_next[unit] = found.da;  // what does not go through the products
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

// As gru_sequence_forward, by groups of blocks that have `units` units each and `rows` examples, `chunk` at a time.
template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    gru_group_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                      const T* __restrict__ first_a, const unsigned char* __restrict__ mask, T* __restrict__ m, T* a,
                      unsigned* arrived, int steps, int batch, int hidden, int units, int rows, int chunk, int has_first,
                      int has_mask)
{
    SHARED_MEMORY;
    const Member me = member_of<By, T, GRU_GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    const Room<T, Acc> room = room_in<Acc>(By(), me, keep<GRU_GATES, false>(By(), kept, me, weights));
    begin(me, a, first_a, has_first);
    Acc value[GRU_GATES];
    Acc a_prev = static_cast<Acc>(0);
    bool stays = false;
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (!spot.works) return;
        const long long example = static_cast<long long>(t) * batch + spot.example;
        const int unit = me.first_unit + spot.unit;
#pragma unroll
        for (int k = 0; k < GRU_GATES; ++k)
            value[k] = static_cast<Acc>(gates[(example * GRU_GATES + k) * hidden + unit]) +
                       static_cast<Acc>(bias[k * hidden + unit]);
        a_prev = static_cast<Acc>(a[example * hidden + unit]);
        stays = has_mask && mask[example] == 0;
    };
    unsigned before = arrive(me, arrived);
    ask(0, 0);
    wait(me, arrived, before);
    for (int t = 0; t < steps; ++t) {
        const long long state = static_cast<long long>(t) * batch * hidden;
        for (int first = 0; first < me.rows; first += chunk) {
            const Spot spot = spot_of(me, first);
            if (first > 0) ask(t, first);
            const T* const from = a + state + (me.first_row + first) * hidden;
            sum_all<GRU_GATES>(By(), me, room, kept, from, min(chunk, me.rows - first));
            if (spot.works) {
                Acc sum[GRU_GATES];
                read_sums(By(), me, room, spot, sum);
                const long long example = static_cast<long long>(t) * batch + spot.example;
                const int unit = me.first_unit + spot.unit;
                open_gates(value, sum, static_cast<Acc>(bias[3 * hidden + unit]),
                           gates + example * GRU_GATES * hidden + unit, m + example * hidden + unit, hidden);
                const Acc mixed = (static_cast<Acc>(1) - value[1]) * value[0] + value[1] * a_prev;
                a[state + static_cast<long long>(batch) * hidden + spot.number] =
                    static_cast<T>(stays ? a_prev : mixed);
            }
            __syncthreads();
        }
        before = arrive(me, arrived);
        if (t + 1 < steps) ask(t + 1, 0);
        wait(me, arrived, before);
    }
}

// As gru_sequence_backward, by groups of blocks. between: two turns of shares, see share_at.
template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    gru_group_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ m,
                       const T* __restrict__ a, const T* __restrict__ weights,
                       const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                       T* __restrict__ da_first, Acc* between, unsigned* arrived, int steps, int batch, int hidden,
                       int units, int rows, int chunk, int has_da, int has_last, int has_mask, int truncate)
{
    using Factor = typename By::template Factor<T, Acc>;
    SHARED_MEMORY;
    const Member me = member_of<By, T, GRU_GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    Factor* const now = reinterpret_cast<Factor*>(keep<GRU_GATES, true>(By(), kept, me, weights));  // dz: z, r, m
    const int apart = apart_of(By(), me, kept);
    Acc* const carried = reinterpret_cast<Acc*>(now + chunk * apart);
    clear(now, chunk * apart);
    carry(me, carried, last_a, has_last);
    GruStep<Acc> step = {};
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (spot.works)
            step = read_gru_step<T, Acc>(gates, m, a, da, mask, static_cast<long long>(t) * batch + spot.example,
                                         hidden, me.first_unit + spot.unit, has_da, has_mask);
    };
    ask(steps - 1, 0);
    __syncthreads();
    for (int t = steps - 1; t >= 0; --t) {
        for (int first = 0; first < me.rows; first += chunk) {
            const Spot spot = spot_of(me, first);
            if (first > 0) ask(t, first);
            if (spot.works) {
                const int row = first + spot.row;
                const Acc da_next = come_back(me, between, carried[spot.own], t, steps, truncate, row, spot.unit);
                const GruGradient<Acc> found = gru_gradient(step, da_next);
                const long long example = static_cast<long long>(t) * batch + spot.example;
                Factor* const mine = now + spot.row * apart + spot.unit * GRU_GATES;
#pragma unroll
                for (int k = 0; k < GRU_BLOCKS; ++k) {
                    const T stored = static_cast<T>(step.left_out ? static_cast<Acc>(0) : found.dz[k]);
                    dz[(example * GRU_BLOCKS + k) * hidden + me.first_unit + spot.unit] = stored;
                    if (k > 0) mine[k - 1] = as_factor<Factor>(By(), stored);
                }
                carried[spot.own] = step.left_out ? da_next : found.da;
            }
            __syncthreads();
            share_all(By(), me, between, t % 2, now, kept, first, min(chunk, me.rows - first));
            __syncthreads();
        }
        const unsigned before = arrive(me, arrived);
        if (t > 0) ask(t - 1, 0);
        wait(me, arrived, before);
    }
    finish(me, da_first, between, carried);
}
