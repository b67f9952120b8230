// Simple recurrent networks through all steps, and back.
#include "common.cuh"
#include "words.cuh"
#include "fragments.cuh"
#include "activation_functions.cuh"
#include "sequence.cuh"
#include "barrier.cuh"
#include "sequence_group.cuh"
#include "sequence_tensor.cuh"

#define RNN_GATES 1

// z (steps, batch, hidden): X W on entry, the whole pre-activation on return. a (steps + 1, batch, hidden): before the
// first step and after each; where the mask is zero it stays. a = act(z).
template <typename T, typename Acc, int ROWS, int HELD>
__global__ void __launch_bounds__(SEQUENCE_BOUNDS)
    rnn_sequence_forward(T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ ba,
                         const T* __restrict__ bx, const T* __restrict__ first_a,
                         const unsigned char* __restrict__ mask, T* __restrict__ a, int steps, int batch, int hidden,
                         int by_unit, int by_gate, int by_term, int fours, int has_first, int has_mask, int act,
                         Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    const Seat seat = seat_of<ROWS>(batch);
    const Cut cut = cut_of<HELD>(hidden);
    Weights<T, Acc, RNN_GATES, HELD> w = {weights, by_unit, by_gate, by_term, cut, seat.lane, fours};
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
            const long long number = example * hidden + unit;
            Acc value = static_cast<Acc>(0);  // asked for before the products, there after them
            if (works) value = static_cast<Acc>(z[number]) + static_cast<Acc>(ba[unit]) + static_cast<Acc>(bx[unit]);
            Acc sum[ROWS][RNN_GATES];
            multiply(w, now, unit, sum);
            if (!works) continue;
            const T stored = static_cast<T>(value + of_row(sum, seat.lane, 0));
            z[number] = stored;
            const bool stays = has_mask && mask[example] == 0;
            const int spot = seat.lane * apart + place_of(w.cut, unit);
            const T shown =
                static_cast<T>(stays ? now[spot] : activation_value(act, static_cast<Acc>(stored), alpha, beta));
            a[number + static_cast<long long>(batch) * hidden] = shown;
            next[spot] = static_cast<Acc>(shown);
        }
        __syncthreads();
    }
}

// dz (steps, batch, hidden) = (da + what comes from the next step) * act'(z); da_first (batch, hidden): the gradient of
// the state before the first step. last_a: that of the last state, if has_last.
template <typename T, typename Acc, int ROWS, int HELD>
__global__ void __launch_bounds__(SEQUENCE_BOUNDS)
    rnn_sequence_backward(const T* __restrict__ da, const T* __restrict__ z, const T* __restrict__ weights,
                          const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                          T* __restrict__ da_first, int steps, int batch, int hidden, int by_unit, int by_gate,
                          int by_term, int fours, int has_da, int has_last, int has_mask, int truncate, int act,
                          Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    constexpr bool ONE_UNIT = HELD > 0;  // a thread has no second one, so it can ask for a step ahead
    const Seat seat = seat_of<ROWS>(batch);
    const Cut cut = cut_of<HELD>(hidden);
    Weights<T, Acc, RNN_GATES, HELD> w = {weights, by_unit, by_gate, by_term, cut, seat.lane, fours};
    const int apart = LANES * w.cut.pitch;
    const int buffer = ROWS * apart;
    Acc* const vectors = reinterpret_cast<Acc*>(memory);  // dz of this step, and of the last one
    Acc* const da_next = settle(w, seat, vectors + 2 * buffer) + seat.lane * hidden;
    clear(vectors, 2 * buffer);
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units)
        da_next[unit] = has_last ? static_cast<Acc>(last_a[static_cast<long long>(seat.row) * hidden + unit])
                                 : static_cast<Acc>(0);
    const bool has_unit = seat.works && seat.first_unit < hidden;
    Acc preactivation = static_cast<Acc>(0);
    Acc upstream = static_cast<Acc>(0);
    bool left_out = false;
    // what step t needs of this thread's example and unit
    const auto read = [&](int t, int unit) {
        const long long example = static_cast<long long>(t) * batch + seat.row;
        preactivation = static_cast<Acc>(z[example * hidden + unit]);
        upstream = has_da ? static_cast<Acc>(da[example * hidden + unit]) : static_cast<Acc>(0);
        left_out = has_mask && mask[example] == 0;
    };
    if (ONE_UNIT && has_unit) read(steps - 1, seat.first_unit);
    __syncthreads();
    for (int t = steps - 1; t >= 0; --t) {
        Acc* const now = vectors + t % 2 * buffer;
        for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units) {
            if (!ONE_UNIT) read(t, unit);
            if (ends_stretch(t, steps, truncate)) da_next[unit] = static_cast<Acc>(0);
            const Acc found = (upstream + da_next[unit]) * activation_slope(act, preactivation, alpha, beta);
            const T stored = static_cast<T>(left_out ? static_cast<Acc>(0) : found);
            dz[(static_cast<long long>(t) * batch + seat.row) * hidden + unit] = stored;
            now[seat.lane * apart + place_of(w.cut, unit)] = static_cast<Acc>(stored);
        }
        __syncthreads();
        const bool stays = left_out;
        if (ONE_UNIT && has_unit && t > 0) read(t - 1, seat.first_unit);
        for (int first = 0; first < hidden; first += seat.units) {
            const int unit = first + seat.first_unit;
            Acc sum[ROWS][RNN_GATES];
            multiply(w, now, unit, sum);
            if (seat.works && unit < hidden && !stays) da_next[unit] = of_row(sum, seat.lane, 0);
        }
    }
    for (int unit = seat.first_unit; seat.works && unit < hidden; unit += seat.units)
        da_first[static_cast<long long>(seat.row) * hidden + unit] = static_cast<T>(da_next[unit]);
}

// As rnn_sequence_forward, by groups of blocks that have `units` units each and `rows` examples, `chunk` at a time.
template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    rnn_group_forward(T* __restrict__ z, const T* __restrict__ weights, const T* __restrict__ ba,
                      const T* __restrict__ bx, const T* __restrict__ first_a, const unsigned char* __restrict__ mask,
                      T* a, unsigned* arrived, int steps, int batch, int hidden, int units, int rows, int chunk,
                      int has_first, int has_mask, int act, Acc alpha, Acc beta)
{
    SHARED_MEMORY;
    const Member me = member_of<By, T, RNN_GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    const Room<T, Acc> room = room_in<Acc>(By(), me, keep<RNN_GATES, false>(By(), kept, me, weights));
    begin(me, a, first_a, has_first);
    Acc value = static_cast<Acc>(0);
    Acc a_prev = static_cast<Acc>(0);
    bool stays = false;
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (!spot.works) return;
        const long long example = static_cast<long long>(t) * batch + spot.example;
        const int unit = me.first_unit + spot.unit;
        value = static_cast<Acc>(z[example * hidden + unit]) + static_cast<Acc>(ba[unit]) + static_cast<Acc>(bx[unit]);
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
            sum_all<RNN_GATES>(By(), me, room, kept, from, min(chunk, me.rows - first));
            if (spot.works) {
                Acc sum[RNN_GATES];
                read_sums(By(), me, room, spot, sum);
                const T stored = static_cast<T>(value + sum[0]);
                const long long number = state + spot.number;
                z[number] = stored;
                a[number + static_cast<long long>(batch) * hidden] = static_cast<T>(
                    stays ? a_prev : activation_value(act, static_cast<Acc>(stored), alpha, beta));
            }
            __syncthreads();
        }
        before = arrive(me, arrived);
        if (t + 1 < steps) ask(t + 1, 0);
        wait(me, arrived, before);
    }
}

// As rnn_sequence_backward, by groups of blocks. between: two turns of shares, see share_at.
template <typename T, typename Acc, typename By>
__global__ void __launch_bounds__(GROUP_BOUNDS)
    rnn_group_backward(const T* __restrict__ da, const T* __restrict__ z, const T* __restrict__ weights,
                       const unsigned char* __restrict__ mask, const T* __restrict__ last_a, T* __restrict__ dz,
                       T* __restrict__ da_first, Acc* between, unsigned* arrived, int steps, int batch, int hidden,
                       int units, int rows, int chunk, int has_da, int has_last, int has_mask, int truncate, int act,
                       Acc alpha, Acc beta)
{
    using Factor = typename By::template Factor<T, Acc>;
    SHARED_MEMORY;
    const Member me = member_of<By, T, RNN_GATES>(batch, hidden, units, rows, chunk);
    T* const kept = reinterpret_cast<T*>(memory);
    Factor* const now = reinterpret_cast<Factor*>(keep<RNN_GATES, true>(By(), kept, me, weights));  // dz of this step
    const int apart = apart_of(By(), me, kept);
    Acc* const carried = reinterpret_cast<Acc*>(now + chunk * apart);
    clear(now, chunk * apart);
    carry(me, carried, last_a, has_last);
    Acc preactivation = static_cast<Acc>(0);
    Acc upstream = static_cast<Acc>(0);
    bool left_out = false;
    // what step t needs of this thread's example and unit, whatever the other members do
    const auto ask = [&](int t, int first) {
        const Spot spot = spot_of(me, first);
        if (!spot.works) return;
        const long long number = static_cast<long long>(t) * batch * hidden + spot.number;
        preactivation = static_cast<Acc>(z[number]);
        upstream = has_da ? static_cast<Acc>(da[number]) : static_cast<Acc>(0);
        left_out = has_mask && mask[static_cast<long long>(t) * batch + spot.example] == 0;
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
                const Acc found = (upstream + da_next) * activation_slope(act, preactivation, alpha, beta);
                const T stored = static_cast<T>(left_out ? static_cast<Acc>(0) : found);
                dz[static_cast<long long>(t) * batch * hidden + spot.number] = stored;
                now[spot.row * apart + spot.unit] = as_factor<Factor>(By(), stored);
                carried[spot.own] = left_out ? da_next : static_cast<Acc>(0);
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
