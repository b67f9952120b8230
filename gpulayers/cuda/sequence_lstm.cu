// Long short-term memory through all steps, and back. Blocks of a row of gates: forget, update, candidate, output.
#include "common.cuh"
#include "words.cuh"
#include "fragments.cuh"
#include "activation_functions.cuh"
#include "sequence.cuh"
#include "barrier.cuh"
#include "sequence_group.cuh"
#include "sequence_tensor.cuh"

#define LSTM_GATES 4

// The gates' values in place of their pre-activations, rounded to what is stored of them.
template <typename T, typename Acc>
__device__ __forceinline__ void open_gates(Acc (&value)[LSTM_GATES], T* gate, int hidden)
{
#pragma unroll
    for (int k = 0; k < LSTM_GATES; ++k) {
        const T stored = static_cast<T>(k == 2 ? tanh(value[k]) : logistic(value[k]));
        gate[k * hidden] = stored;
        value[k] = static_cast<Acc>(stored);
    }
}

// gates (steps, batch, 4 hidden): X W on entry, their values on return. a, c (steps + 1, batch, hidden): before the
// first step and after each; where the mask is zero a state stays. c = f c_prev + u candidate, a = o tanh(c).
template <typename T, typename Acc, int ROWS, int HELD>
__global__ void __launch_bounds__(SEQUENCE_BOUNDS)
    lstm_sequence_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                          const T* __restrict__ first_a, const T* __restrict__ first_c,
                          const unsigned char* __restrict__ mask, T* __restrict__ a, T* __restrict__ c, int steps,
                          int batch, int hidden, int by_unit, int by_gate, int by_term, int fours, int has_first,
                          int has_mask)
{
    SHARED_MEMORY;
    const Seat seat = seat_of<ROWS>(batch);
    Weights<T, Acc, LSTM_GATES, HELD> w = {weights, by_unit, by_gate, by_term, cut_of<HELD>(hidden), seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = ROWS * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // a before this step, and before the next
    Acc* const state = settle(w, seat, vectors + 2 * buffer) + seat.lane * hidden;
    clear(vectors, 2 * buffer);
    __syncthreads();
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
        const long long number = static_cast<long long>(seat.row) * hidden + unit;
        a[number] = has_first ? first_a[number] : static_cast<T>(0);
        c[number] = has_first ? first_c[number] : static_cast<T>(0);
        vectors[seat.lane * apart + place_of(w.cut, unit)] = static_cast<Acc>(a[number]);
        state[unit] = static_cast<Acc>(c[number]);
    }
    __syncthreads();
    for (int t = 0; t < steps; ++t) {
        const Acc* const now = vectors + t % 2 * buffer;
        Acc* const next = vectors + (t + 1) % 2 * buffer;
        const long long example = static_cast<long long>(t) * batch + seat.row;
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            const bool works = seat.works && unit < hidden;
            T* const gate = gates + example * LSTM_GATES * hidden + unit;
            Acc value[LSTM_GATES];  // asked for before the products, there after them
#pragma unroll
            for (int k = 0; k < LSTM_GATES; ++k)
                value[k] = works ? static_cast<Acc>(gate[k * hidden]) + static_cast<Acc>(bias[k * hidden + unit])
                                 : static_cast<Acc>(0);
            Acc sum[ROWS][LSTM_GATES];
            multiply(w, now, unit, sum);
            if (!works) continue;
#pragma unroll
            for (int k = 0; k < LSTM_GATES; ++k) value[k] += of_row(sum, seat.lane, k);
            open_gates(value, gate, hidden);
            const bool stays = has_mask && mask[example] == 0;
            const int spot = seat.lane * apart + place_of(w.cut, unit);
            const T memory_cell = static_cast<T>(stays ? state[unit] : value[0] * state[unit] + value[1] * value[2]);
            const T shown = static_cast<T>(stays ? now[spot] : value[3] * tanh(static_cast<Acc>(memory_cell)));
            const long long number = (example + batch) * hidden + unit;
            c[number] = memory_cell;
            a[number] = shown;
            state[unit] = static_cast<Acc>(memory_cell);
            next[spot] = static_cast<Acc>(shown);
        }
        __syncthreads();
    }
}

// What a thread needs of a step on the way back, of its example and unit.
template <typename Acc>
struct LstmStep {
    Acc gate[LSTM_GATES], c_prev, squashed, da;
    bool left_out;
};

template <typename T, typename Acc>
__device__ __forceinline__ LstmStep<Acc> read_lstm_step(const T* gates, const T* c, const T* da,
                                                        const unsigned char* mask, long long example, int batch,
                                                        int hidden, int unit, bool has_da, bool has_mask)
{
    LstmStep<Acc> step;
#pragma unroll
    for (int k = 0; k < LSTM_GATES; ++k)
        step.gate[k] = static_cast<Acc>(gates[(example * LSTM_GATES + k) * hidden + unit]);
    step.c_prev = static_cast<Acc>(c[example * hidden + unit]);
    step.squashed = static_cast<Acc>(c[(example + batch) * hidden + unit]);  // tanh is taken of it when it is there
    step.da = has_da ? static_cast<Acc>(da[example * hidden + unit]) : static_cast<Acc>(0);
    step.left_out = has_mask && mask[example] == 0;
    return step;
}

// The gradients of the pre-activations, and of the memory cell before the step.
template <typename Acc>
struct LstmGradient {
    Acc dz[LSTM_GATES], dc;
};

template <typename Acc>
__device__ __forceinline__ LstmGradient<Acc> lstm_gradient(const LstmStep<Acc>& step, Acc da_next, Acc dc_next)
{
    const Acc one = static_cast<Acc>(1);
    const Acc forget = step.gate[0];
    const Acc update = step.gate[1];
    const Acc candidate = step.gate[2];
    const Acc output = step.gate[3];
    const Acc squashed = tanh(step.squashed);
    const Acc total = step.da + da_next;
    const Acc dc = dc_next + total * output * (one - squashed * squashed);
    return {{dc * step.c_prev * forget * (one - forget), dc * candidate * update * (one - update),
             dc * update * (one - candidate * candidate), total * squashed * output * (one - output)},
            dc * forget};
}

// dz (steps, batch, 4 hidden) of all gates; da_first and dc_first (batch, hidden): the gradients of the states before the
// first step. last_a and last_c: those of the last states; has_last: 1 if there is the one, 2 the other, 3 both.
template <typename T, typename Acc, int ROWS, int HELD>
__global__ void __launch_bounds__(SEQUENCE_BOUNDS)
    lstm_sequence_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ c,
                           const T* __restrict__ weights, const unsigned char* __restrict__ mask,
                           const T* __restrict__ last_a, const T* __restrict__ last_c, T* __restrict__ dz,
                           T* __restrict__ da_first, T* __restrict__ dc_first, int steps, int batch, int hidden,
                           int by_unit, int by_gate, int by_term, int fours, int has_da, int has_last, int has_mask,
                           int truncate)
{
    SHARED_MEMORY;
    constexpr bool ONE_UNIT = HELD > 0;  // a thread has no second one, so it can ask for a step ahead
    const Seat seat = seat_of<ROWS>(batch);
    Weights<T, Acc, LSTM_GATES, HELD> w = {weights, by_unit, by_gate, by_term, cut_of<HELD>(hidden), seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = ROWS * LSTM_GATES * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // dz of this step, and of the last one
    Acc* const from_next = settle(w, seat, vectors + 2 * buffer);
    Acc* const da_next = from_next + seat.lane * hidden;
    Acc* const dc_next = from_next + (ROWS + seat.lane) * hidden;
    clear(vectors, 2 * buffer);
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
        const long long number = static_cast<long long>(seat.row) * hidden + unit;
        da_next[unit] = has_last % 2 > 0 ? static_cast<Acc>(last_a[number]) : static_cast<Acc>(0);
        dc_next[unit] = has_last / 2 > 0 ? static_cast<Acc>(last_c[number]) : static_cast<Acc>(0);
    }
    LstmStep<Acc> step = {};
    const bool has_unit = seat.works && seat.first_unit < hidden;
    if (ONE_UNIT && has_unit)
        step = read_lstm_step<T, Acc>(gates, c, da, mask, static_cast<long long>(steps - 1) * batch + seat.row, batch,
                                      hidden, seat.first_unit, has_da, has_mask);
    __syncthreads();
    for (int t = steps - 1; t >= 0; --t) {
        Acc* const now = vectors + t % 2 * buffer;
        const long long example = static_cast<long long>(t) * batch + seat.row;
        for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
            if (!ONE_UNIT)
                step = read_lstm_step<T, Acc>(gates, c, da, mask, example, batch, hidden, unit, has_da, has_mask);
            if (ends_stretch(t, steps, truncate)) da_next[unit] = dc_next[unit] = static_cast<Acc>(0);
            const LstmGradient<Acc> found = lstm_gradient(step, da_next[unit], dc_next[unit]);
            const int spot = seat.lane * LSTM_GATES * apart + place_of(w.cut, unit);
#pragma unroll
            for (int k = 0; k < LSTM_GATES; ++k) {
                const T stored = static_cast<T>(step.left_out ? static_cast<Acc>(0) : found.dz[k]);
                dz[(example * LSTM_GATES + k) * hidden + unit] = stored;
                now[spot + k * apart] = static_cast<Acc>(stored);
            }
            if (!step.left_out) dc_next[unit] = found.dc;
        }
        __syncthreads();
        const bool left_out = step.left_out;
        if (ONE_UNIT && has_unit && t > 0)
            step = read_lstm_step<T, Acc>(gates, c, da, mask, example - batch, batch, hidden, seat.first_unit, has_da,
                                          has_mask);
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            Acc sum[ROWS][1];
            multiply(w, now, unit, sum);
            if (seat.works && unit < hidden && !left_out) da_next[unit] = of_row(sum, seat.lane, 0);
        }
    }
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
        const long long number = static_cast<long long>(seat.row) * hidden + unit;
        da_first[number] = static_cast<T>(da_next[unit]);
        dc_first[number] = static_cast<T>(dc_next[unit]);
    }
}

// As lstm_sequence_forward, by groups of blocks that have `units` units each and `rows` examples, `chunk` at a time.
template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    lstm_group_forward(T* __restrict__ gates, const T* __restrict__ weights, const T* __restrict__ bias,
                       const T* __restrict__ first_a, const T* __restrict__ first_c,
                       const unsigned char* __restrict__ mask, T* a, T* __restrict__ c, unsigned* arrived, int steps,
                       int batch, int hidden, int units, int rows, int chunk, int has_first, int has_mask)
{
    SHARED_MEMORY;
    const Member me = member_of<By, T, LSTM_GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    const Room<T, Acc> room = room_in<Acc>(By(), me, keep<LSTM_GATES, false>(By(), kept, me, weights));
    begin(me, a, first_a, has_first);
    begin(me, c, first_c, has_first);
    Acc value[LSTM_GATES];
    Acc a_prev = static_cast<Acc>(0);
    Acc c_prev = static_cast<Acc>(0);
    bool stays = false;
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (!spot.works) return;
        const long long example = static_cast<long long>(t) * batch + spot.example;
        const int unit = me.first_unit + spot.unit;
#pragma unroll
        for (int k = 0; k < LSTM_GATES; ++k)
            value[k] = static_cast<Acc>(gates[(example * LSTM_GATES + k) * hidden + unit]) +
                       static_cast<Acc>(bias[k * hidden + unit]);
        c_prev = static_cast<Acc>(c[example * hidden + unit]);
        stays = has_mask && mask[example] == 0;
        if (stays) a_prev = static_cast<Acc>(a[example * hidden + unit]);
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
            sum_all<LSTM_GATES>(By(), me, room, kept, from, min(chunk, me.rows - first));
            if (spot.works) {
                Acc sum[LSTM_GATES];
                read_sums(By(), me, room, spot, sum);
#pragma unroll
                for (int k = 0; k < LSTM_GATES; ++k) value[k] += sum[k];
                const long long example = static_cast<long long>(t) * batch + spot.example;
                open_gates(value, gates + example * LSTM_GATES * hidden + me.first_unit + spot.unit, hidden);
                const T memory_cell = static_cast<T>(stays ? c_prev : value[0] * c_prev + value[1] * value[2]);
                const long long number = state + static_cast<long long>(batch) * hidden + spot.number;
                c[number] = memory_cell;
                a[number] = static_cast<T>(stays ? a_prev : value[3] * tanh(static_cast<Acc>(memory_cell)));
            }
            __syncthreads();
        }
        before = arrive(me, arrived);
        if (t + 1 < steps) ask(t + 1, 0);
        wait(me, arrived, before);
    }
}

// As lstm_sequence_backward, by groups of blocks. between: two turns of shares, see share_at.
template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    lstm_group_backward(const T* __restrict__ da, const T* __restrict__ gates, const T* __restrict__ c,
                        const T* __restrict__ weights, const unsigned char* __restrict__ mask,
                        const T* __restrict__ last_a, const T* __restrict__ last_c, T* __restrict__ dz,
                        T* __restrict__ da_first, T* __restrict__ dc_first, Acc* between, unsigned* arrived, int steps,
                        int batch, int hidden, int units, int rows, int chunk, int has_da, int has_last, int has_mask,
                        int truncate)
{
    using Factor = typename By::template Factor<T, Acc>;
    SHARED_MEMORY;
    const Member me = member_of<By, T, LSTM_GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    Factor* const now = reinterpret_cast<Factor*>(keep<LSTM_GATES, true>(By(), kept, me, weights));  // dz of this step
    const int apart = apart_of(By(), me, kept);
    Acc* const carried_a = reinterpret_cast<Acc*>(now + chunk * apart);
    Acc* const carried_c = carried_a + rows * units;
    clear(now, chunk * apart);
    carry(me, carried_a, last_a, has_last % 2 > 0);
    carry(me, carried_c, last_c, has_last / 2 > 0);
    LstmStep<Acc> step = {};
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (spot.works)
            step = read_lstm_step<T, Acc>(gates, c, da, mask, static_cast<long long>(t) * batch + spot.example, batch,
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
                const Acc da_next = come_back(me, between, carried_a[spot.own], t, steps, truncate, row, spot.unit);
                if (ends_stretch(t, steps, truncate)) carried_c[spot.own] = static_cast<Acc>(0);
                const LstmGradient<Acc> found = lstm_gradient(step, da_next, carried_c[spot.own]);
                const long long example = static_cast<long long>(t) * batch + spot.example;
#pragma unroll
                for (int k = 0; k < LSTM_GATES; ++k) {
                    const T stored = static_cast<T>(step.left_out ? static_cast<Acc>(0) : found.dz[k]);
                    dz[(example * LSTM_GATES + k) * hidden + me.first_unit + spot.unit] = stored;
                    now[spot.row * apart + spot.unit * LSTM_GATES + k] = as_factor<Factor>(By(), stored);
                }
                carried_a[spot.own] = step.left_out ? da_next : static_cast<Acc>(0);
                if (!step.left_out) carried_c[spot.own] = found.dc;
            }
            __syncthreads();
            share_all(By(), me, between, t % 2, now, kept, first, min(chunk, me.rows - first));
            __syncthreads();
        }
        const unsigned before = arrive(me, arrived);
        if (t > 0) ask(t - 1, 0);
        wait(me, arrived, before);
    }
    finish(me, da_first, between, carried_a);
    for (int i = threadIdx.x; i < me.rows * me.units; i += blockDim.x) {
        const Place place = place_in(me, i);
        dc_first[place.number] = static_cast<T>(carried_c[place.own]);
    }
}
