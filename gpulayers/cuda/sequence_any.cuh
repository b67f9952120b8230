// A block takes four examples of any number of units through all steps. Examples never meet, so no block waits for
// another. Four lanes work on a unit: each adds up a quarter of the terms of its sums, for all gates; lane k then
// finishes the k-th example.
//
// The recurrent weights are needed in each step. Of a lane's terms the first ones lie in shared memory from the
// beginning to the end, as many as fit, and the others are read anew in each step, from the L2 cache. A sum has its terms
// in the same order wherever the weights lie.

#define ANY_BOUNDS 512, 1  // threads of a block at most, blocks at a time
#define LANES 4

// Who this thread is. `works`: it finishes example number `row` of the batch, the lane-th of the block.
struct Seat {
    int lane, first_unit, units, row;
    bool works;
};

__device__ __forceinline__ Seat seat_of(int batch)
{
    const int lane = static_cast<int>(threadIdx.x) % LANES;
    const int row = static_cast<int>(blockIdx.x) * LANES + lane;
    return {lane, static_cast<int>(threadIdx.x) / LANES, static_cast<int>(blockDim.x) / LANES, row, row < batch};
}

// How the numbers of a vector of all units lie in shared memory: by quarters of whole Fours, zeros behind them. A
// quarter is an odd number of Fours long, so that the four lanes read from different banks.
struct Cut {
    int hidden, quarter, pitch;
};

__device__ __forceinline__ Cut cut_of(int hidden)
{
    const int fours = (hidden + 15) / 16;
    return {hidden, 4 * fours, 4 * (fours | 1)};
}

__device__ __forceinline__ int place_of(const Cut& cut, int unit)
{
    return unit / cut.quarter * cut.pitch + unit % cut.quarter;
}

// The recurrent weights as this thread has them; `fours` of each lane and gate are in shared memory.
template <typename T, typename Acc>
struct Weights {
    Recurrent<T> all;
    Cut cut;
    int lane, fours;
    const Four<Acc>* stored;
};

// Four terms of a lane, zero beyond the last unit.
template <typename T, typename Acc>
__device__ __forceinline__ Four<Acc> read_four(const Weights<T, Acc>& w, int lane, int unit, int gate, int four)
{
    Four<Acc> read;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const int term = lane * w.cut.quarter + 4 * four + e;
        const bool there = term < w.cut.hidden;
        read.v[e] = there ? weight_of<Acc>(w.all, unit, gate, term) : static_cast<Acc>(0);
    }
    return read;
}

// Bring `fours` Fours of each lane and gate into `memory`; returns what lies behind.
template <int GATES, typename T, typename Acc>
__device__ __forceinline__ Acc* settle(Weights<T, Acc>& w, Acc* memory)
{
    Four<Acc>* const stored = reinterpret_cast<Four<Acc>*>(memory);
    const int slots = LANES * w.cut.hidden;
    const int count = w.fours * GATES * slots;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const int slot = i % slots;
        stored[i] = read_four(w, slot % LANES, slot / LANES, i / slots % GATES, i / slots / GATES);
    }
    w.stored = stored;
    return reinterpret_cast<Acc*>(stored + count);
}

// The part of four terms: SUMS == GATES, a sum for each gate of the one vector an example has (ahead); SUMS == 1, all
// gates' vectors into one sum (back). Vectors lie `apart`.
template <typename Acc, int GATES, int SUMS>
__device__ __forceinline__ void add_four(const Four<Acc> (&weights)[GATES], const Acc* vectors, int apart,
                                         Acc (&sum)[LANES][SUMS])
{
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
        for (int r = 0; r < LANES; ++r) {
            const int number = SUMS == GATES ? r : r * GATES + gate;
            const Four<Acc> x = *reinterpret_cast<const Four<Acc>*>(vectors + number * apart);
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[r][SUMS == GATES ? gate : 0] += weights[gate].v[e] * x.v[e];
        }
}

// The sums of a unit over the vectors in shared memory; of those of all examples, whole ones in all four lanes, a lane
// finds its own.
template <int GATES, typename T, typename Acc, int SUMS>
__device__ __forceinline__ void multiply(const Weights<T, Acc>& w, const Acc* vectors, int unit, Acc (&own)[SUMS])
{
    const int apart = LANES * w.cut.pitch;
    const int slots = LANES * w.cut.hidden;
    const int known = unit < w.cut.hidden ? unit : w.cut.hidden - 1;  // lanes without a unit keep the others company
    const Acc* const mine = vectors + w.lane * w.cut.pitch;
    Four<Acc> weights[GATES];
    Acc sum[LANES][SUMS] = {};
    int stored = known * LANES + w.lane;
#pragma unroll 1
    for (int four = 0; four < w.fours; ++four) {
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) weights[gate] = w.stored[stored + gate * slots];
        add_four(weights, mine + 4 * four, apart, sum);
        stored += GATES * slots;
    }
#pragma unroll 1
    for (int four = w.fours; four < w.cut.quarter / 4; ++four) {
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) weights[gate] = read_four(w, w.lane, known, gate, four);
        add_four(weights, mine + 4 * four, apart, sum);
    }
#pragma unroll
    for (int r = 0; r < LANES; ++r)
#pragma unroll
        for (int s = 0; s < SUMS; ++s) {
            sum[r][s] += __shfl_xor_sync(ALL_LANES, sum[r][s], 1);
            sum[r][s] += __shfl_xor_sync(ALL_LANES, sum[r][s], 2);
            if (r == 0 || w.lane == r) own[s] = sum[r][s];  // registers have no index that is not known
        }
}
