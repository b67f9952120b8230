// Recurrent networks through all time steps in one launch: for sequence_rnn.cu, sequence_lstm.cu and sequence_gru.cu.
//
// A block takes ROWS examples through all steps. Examples never meet, so no block waits for another. Four lanes work on
// a unit: each adds up a quarter of the terms of its sums, for all gates; lane k then finishes the k-th example.
//
// The recurrent weights are needed in each step. Of a lane's terms the first HELD lie in registers from the beginning
// to the end, the next ones in shared memory, as many as fit, and the others are read anew in each step, from the L2
// cache. A sum has its terms in the same order wherever the weights lie.

#define SEQUENCE_BOUNDS 512, 1  // threads of a block at most, blocks at a time: registers for as many weights as possible
#define LANES 4
#define ALL_LANES 0xffffffffu
#define SHARED_MEMORY extern __shared__ __align__(16) unsigned char memory[];

// What a load of shared memory brings at once.
template <typename Acc>
struct __align__(16) Four {
    Acc v[4];
};

// Who this thread is. `works`: it finishes example number `row` of the batch, the lane-th of the block.
struct Seat {
    int lane, first_unit, units, row;
    bool works;
};

template <int ROWS>
__device__ __forceinline__ Seat seat_of(int batch)
{
    const int lane = static_cast<int>(threadIdx.x) % LANES;
    const int row = static_cast<int>(blockIdx.x) * ROWS + lane;
    return {lane, static_cast<int>(threadIdx.x) / LANES, static_cast<int>(blockDim.x) / LANES, row,
            lane < ROWS && row < batch};
}

// How the numbers of a vector of all units lie in shared memory: by quarters of whole Fours, zeros behind them. A
// quarter is an odd number of Fours long, so that the four lanes read from different banks.
struct Cut {
    int hidden, quarter, pitch;
};

template <int HELD>
__device__ __forceinline__ Cut cut_of(int hidden)
{
    const int fours = (hidden + 15) / 16;
    const int least = fours < HELD / 4 ? HELD / 4 : fours;
    return {hidden, 4 * fours, 4 * (least | 1)};
}

__device__ __forceinline__ int place_of(const Cut& cut, int unit)
{
    return unit / cut.quarter * cut.pitch + unit % cut.quarter;
}

template <typename Acc>
__device__ __forceinline__ void clear(Acc* __restrict__ memory, int count)
{
    for (int i = threadIdx.x; i < count; i += blockDim.x) memory[i] = static_cast<Acc>(0);
}

// The recurrent weights as this thread has them: that of (unit, gate, term) lies where the three strides say.
template <typename T, typename Acc, int GATES, int HELD>
struct Weights {
    const T* values;
    int by_unit, by_gate, by_term;
    Cut cut;
    int lane, fours;
    const Four<Acc>* stored;
    Acc held[GATES][HELD > 0 ? HELD : 1];
};

// Four terms of a lane, zero beyond its quarter and beyond the last unit.
template <typename T, typename Acc, int GATES, int HELD>
__device__ __forceinline__ Four<Acc> read_four(const Weights<T, Acc, GATES, HELD>& w, int lane, int unit, int gate,
                                               int four)
{
    Four<Acc> read;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const int term = lane * w.cut.quarter + 4 * four + e;
        const bool there = 4 * four < w.cut.quarter && term < w.cut.hidden;
        read.v[e] = there ? static_cast<Acc>(w.values[unit * w.by_unit + gate * w.by_gate + term * w.by_term])
                          : static_cast<Acc>(0);
    }
    return read;
}

// Bring weights into the registers, and `fours` Fours of each lane and gate into `memory`; returns what lies behind.
template <typename T, typename Acc, int GATES, int HELD>
__device__ __forceinline__ Acc* settle(Weights<T, Acc, GATES, HELD>& w, const Seat& seat, Acc* memory)
{
    Four<Acc>* const stored = reinterpret_cast<Four<Acc>*>(memory);
    const int slots = LANES * w.cut.hidden;
    const int count = w.fours * GATES * slots;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int slot = i % slots;
        stored[i] = read_four(w, slot % LANES, slot / LANES, i / slots % GATES, HELD / 4 + i / slots / GATES);
    }
    const int unit = seat.first_unit < w.cut.hidden ? seat.first_unit : w.cut.hidden - 1;
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
        for (int four = 0; four < HELD / 4; ++four) {
            const Four<Acc> read = read_four(w, w.lane, unit, gate, four);
#pragma unroll
            for (int e = 0; e < 4; ++e) w.held[gate][4 * four + e] = read.v[e];
        }
    w.stored = stored;
    return reinterpret_cast<Acc*>(stored + count);
}

// The part of four terms: SUMS == GATES, a sum for each gate of the one vector an example has (forward); SUMS == 1, all
// gates' vectors into one sum (back). Vectors lie `apart`.
template <typename Acc, int GATES, int ROWS, int SUMS>
__device__ __forceinline__ void add_four(const Four<Acc> (&weights)[GATES], const Acc* vectors, int apart,
                                         Acc (&sum)[ROWS][SUMS])
{
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int number = SUMS == GATES ? r : r * GATES + gate;
            const Four<Acc> x = *reinterpret_cast<const Four<Acc>*>(vectors + number * apart);
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[r][SUMS == GATES ? gate : 0] += weights[gate].v[e] * x.v[e];
        }
}

// The sums of a unit over the vectors in shared memory, whole ones in all four lanes.
template <typename T, typename Acc, int GATES, int HELD, int ROWS, int SUMS>
__device__ __forceinline__ void multiply(const Weights<T, Acc, GATES, HELD>& w, const Acc* vectors, int unit,
                                         Acc (&sum)[ROWS][SUMS])
{
    const int apart = LANES * w.cut.pitch;
    const int slots = LANES * w.cut.hidden;
    const int known = unit < w.cut.hidden ? unit : w.cut.hidden - 1;  // lanes without a unit keep the others company
    const Acc* const mine = vectors + w.lane * w.cut.pitch;
    Four<Acc> weights[GATES];
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int s = 0; s < SUMS; ++s) sum[r][s] = static_cast<Acc>(0);

#pragma unroll
    for (int four = 0; four < HELD / 4; ++four) {
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
            for (int e = 0; e < 4; ++e) weights[gate].v[e] = w.held[gate][4 * four + e];
        add_four(weights, mine + 4 * four, apart, sum);
    }
    int stored = known * LANES + w.lane;
#pragma unroll 1
    for (int four = HELD / 4; four < HELD / 4 + w.fours; ++four) {
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) weights[gate] = w.stored[stored + gate * slots];
        add_four(weights, mine + 4 * four, apart, sum);
        stored += GATES * slots;
    }
#pragma unroll 1
    for (int four = HELD / 4 + w.fours; four < w.cut.quarter / 4; ++four) {
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) weights[gate] = read_four(w, w.lane, known, gate, four);
        add_four(weights, mine + 4 * four, apart, sum);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int s = 0; s < SUMS; ++s) {
            sum[r][s] += __shfl_xor_sync(ALL_LANES, sum[r][s], 1);
            sum[r][s] += __shfl_xor_sync(ALL_LANES, sum[r][s], 2);
        }
}

// sum[row][s], without an index that the compiler does not know: registers have none.
template <typename Acc, int ROWS, int SUMS>
__device__ __forceinline__ Acc of_row(const Acc (&sum)[ROWS][SUMS], int row, int s)
{
    Acc found = sum[0][s];
#pragma unroll
    for (int r = 1; r < ROWS; ++r)
        if (row == r) found = sum[r][s];
    return found;
}

// Whether nothing comes back from step t + 1: a stretch of truncated backpropagation ends after step t.
__device__ __forceinline__ bool ends_stretch(int t, int steps, int truncate)
{
    return truncate > 0 && t + 1 < steps && (t + 1) % truncate == 0;
}
