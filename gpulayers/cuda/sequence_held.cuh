// A block takes ROWS examples, one or two, of up to 128 units through all steps, and keeps nearly all of the recurrent
// weights in its threads' registers from the beginning to the end: of the 64 K numbers of an LSTM of 128 units more than
// two thirds are there, the rest in shared memory.
//
// The lanes of a team have half as many units. A lane adds up its part of the terms, which are dealt out to the team's
// lanes by Fours, for all sums of the team's units: so that each number that it reads of a vector is multiplied by many
// weights. Exchanges between the lanes then halve the sums that a lane works on, until it has those of one unit of one
// example, which it finishes; with one example the two lanes that have a unit have the same sums, and the first of them
// finishes it. One barrier a step: the vectors of two steps are in memory.

#define HELD_THREADS 256  // of a block at most
#define HELD_BOUNDS HELD_THREADS, 1  // and blocks at a time: registers for as many weights as possible

// Who this thread is. `unit`, `row`: what it finishes, if it `works`; `place`: number of the example in the block.
struct HeldSeat {
    int lane, first_unit, unit, place, row;
    bool works;
};

template <int TEAM, int ROWS>
__device__ __forceinline__ HeldSeat held_seat(int batch, int hidden)
{
    constexpr int UNITS = TEAM / 2;
    HeldSeat seat;
    seat.lane = static_cast<int>(threadIdx.x) % TEAM;
    seat.first_unit = static_cast<int>(threadIdx.x) / TEAM * UNITS;
    const int sums = seat.lane * ROWS / 2;
    seat.unit = seat.first_unit + sums % UNITS;
    seat.place = sums / UNITS;
    seat.row = static_cast<int>(blockIdx.x) * ROWS + seat.place;
    seat.works = (ROWS > 1 || seat.lane % 2 == 0) && seat.unit < hidden && seat.row < batch;
    return seat;
}

// The weights of a thread, by chunks: a chunk is a Four of terms of one vector, with a Four of weights for each sum of
// the team's units. IN vectors of all units give a unit OUT sums. The first HELD Fours of weights are in registers.
template <typename Acc, int OUT, int IN, int TEAM, int HELD>
struct HeldWeights {
    static constexpr int SUMS = OUT * (TEAM / 2);
    int chunks;
    const Four<Acc>* stored;
    Four<Acc> held[HELD];
};

template <int TEAM>
__device__ __forceinline__ int chunks_of(int hidden, int vectors)
{
    return (hidden + 4 * TEAM - 1) / (4 * TEAM) * vectors;
}

// Where an example's number of a unit and a vector lies: the lanes of a team read neighbouring Fours.
template <int IN, int TEAM>
__device__ __forceinline__ int place_of(int unit, int vector)
{
    const int four = unit / 4;
    return ((four / TEAM * IN + vector) * TEAM + four % TEAM) * 4 + unit % 4;
}

// A thread's i-th Four of weights: zeros beyond the last term and the last unit.
template <typename Acc, int OUT, int IN, int TEAM, typename T>
__device__ __forceinline__ Four<Acc> read_held(const Recurrent<T>& w, const HeldSeat& seat, int hidden, int i)
{
    constexpr int SUMS = OUT * (TEAM / 2);
    Four<Acc> read;
    const int chunk = i / SUMS, sum = i % SUMS;
    const int unit = seat.first_unit + sum / OUT;
    const int gate = OUT > 1 ? sum % OUT : chunk % IN;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
        const int term = (chunk / IN * TEAM + seat.lane) * 4 + e;
        read.v[e] = unit < hidden && term < hidden ? weight_of<Acc>(w, unit, gate, term) : static_cast<Acc>(0);
    }
    return read;
}

// Bring all weights to where they stay, the last ones into `memory`.
template <typename T, typename Acc, int OUT, int IN, int TEAM, int HELD>
__device__ __forceinline__ void settle(HeldWeights<Acc, OUT, IN, TEAM, HELD>& kept, const Recurrent<T>& w,
                                       const HeldSeat& seat, int hidden, Acc* memory)
{
    constexpr int SUMS = HeldWeights<Acc, OUT, IN, TEAM, HELD>::SUMS;
    Four<Acc>* const stored = reinterpret_cast<Four<Acc>*>(memory) + threadIdx.x;
    kept.stored = stored;
#pragma unroll 5
    for (int i = HELD; i < kept.chunks * SUMS; ++i)
        stored[(i - HELD) * HELD_THREADS] = read_held<Acc, OUT, IN, TEAM>(w, seat, hidden, i);
#pragma unroll
    for (int i = 0; i < HELD; ++i) kept.held[i] = read_held<Acc, OUT, IN, TEAM>(w, seat, hidden, i);
}

// Of COUNT sums of two lanes, HIGH apart, each lane goes on with a half, to which it adds the other's; once OWN are left
// both go on with all of them.
template <int COUNT, int OWN, int HIGH, typename Acc, int ALL>
__device__ __forceinline__ void exchange(Acc (&sum)[ALL], int lane)
{
    if constexpr (HIGH > 0) {
        constexpr bool HALVES = COUNT > OWN;
        constexpr int LEFT = HALVES ? COUNT / 2 : COUNT;
        const bool upper = (lane & HIGH) != 0;
#pragma unroll
        for (int i = 0; i < LEFT; ++i) {
            const Acc kept = HALVES && upper ? sum[COUNT - LEFT + i] : sum[i];
            const Acc given = HALVES && !upper ? sum[COUNT - LEFT + i] : sum[i];
            sum[i] = kept + __shfl_xor_sync(ALL_LANES, given, HIGH);
        }
        exchange<LEFT, OWN, HIGH / 2>(sum, lane);
    }
}

// The part of the weights in registers, from number CHUNK on.
template <int CHUNK, int ROWS, typename Acc, int OUT, int IN, int TEAM, int HELD, int ALL>
__device__ __forceinline__ void add_held(const HeldWeights<Acc, OUT, IN, TEAM, HELD>& kept, const Four<Acc>* mine,
                                         int apart, Acc (&sum)[ALL])
{
    constexpr int SUMS = ALL / ROWS;
    constexpr int LEFT = HELD - CHUNK * SUMS;
    if constexpr (LEFT > 0) {
        if (CHUNK >= kept.chunks) return;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Four<Acc> x = mine[r * apart + CHUNK * TEAM];
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
                for (int s = 0; s < (LEFT < SUMS ? LEFT : SUMS); ++s)
                    sum[r * SUMS + s] += kept.held[CHUNK * SUMS + s].v[e] * x.v[e];
        }
        add_held<CHUNK + 1, ROWS>(kept, mine, apart, sum);
    }
}

// The part of a chunk's weights in shared memory, which are those of the sums from FROM on.
template <int FROM, int ROWS, typename Acc, int OUT, int IN, int TEAM, int HELD, int ALL>
__device__ __forceinline__ void add_stored(const HeldWeights<Acc, OUT, IN, TEAM, HELD>& kept, const Four<Acc>* mine,
                                           int apart, int chunk, Acc (&sum)[ALL])
{
    constexpr int SUMS = ALL / ROWS;
    const Four<Acc>* const stored = kept.stored + (chunk * SUMS - HELD) * HELD_THREADS;
    Four<Acc> x[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) x[r] = mine[r * apart + chunk * TEAM];
#pragma unroll
    for (int s = FROM; s < SUMS; ++s) {
        const Four<Acc> weights = stored[s * HELD_THREADS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[r * SUMS + s] += weights.v[e] * x[r].v[e];
    }
}

// All of them.
template <int ROWS, typename Acc, int OUT, int IN, int TEAM, int HELD, int ALL>
__device__ __forceinline__ void add_all_stored(const HeldWeights<Acc, OUT, IN, TEAM, HELD>& kept,
                                               const Four<Acc>* mine, int apart, Acc (&sum)[ALL])
{
    constexpr int SUMS = ALL / ROWS;
    int chunk = HELD / SUMS;
    if (HELD % SUMS > 0 && chunk < kept.chunks) {
        add_stored<HELD % SUMS, ROWS>(kept, mine, apart, chunk, sum);
        ++chunk;
    }
#pragma unroll 1
    for (; chunk < kept.chunks; ++chunk) add_stored<0, ROWS>(kept, mine, apart, chunk, sum);
}

// sum[0] up to below sum[OUT]: those of the thread's unit and example, over the vectors in shared memory. Half of the
// warps begin with the weights there, while the others multiply those in registers: so neither memory nor multipliers
// have to wait.
template <int ROWS, typename Acc, int OUT, int IN, int TEAM, int HELD, int ALL>
__device__ __forceinline__ void multiply(const HeldWeights<Acc, OUT, IN, TEAM, HELD>& kept, const HeldSeat& seat,
                                         const Acc* vectors, Acc (&sum)[ALL])
{
    const Four<Acc>* const mine = reinterpret_cast<const Four<Acc>*>(vectors) + seat.lane;
    const int apart = kept.chunks * TEAM;
    const int turn = static_cast<int>(threadIdx.x) / (HELD_THREADS / 2);
#pragma unroll
    for (int s = 0; s < ALL; ++s) sum[s] = static_cast<Acc>(0);
#pragma unroll 1
    for (int part = 0; part < 2; ++part)
        if (part == turn)
            add_held<0, ROWS>(kept, mine, apart, sum);
        else
            add_all_stored<ROWS>(kept, mine, apart, sum);
    exchange<ALL, OUT, TEAM / 2>(sum, seat.lane);
}

// How such a block goes through the steps (see sequence_ways.cuh).
template <typename Acc, int OUT, int IN, int TEAM, int ROWS, int HELD>
struct HeldBlock {
    using Factor = Acc;
    static constexpr int PAIRS = 1, UNITS = 1;
    HeldSeat seat;
    HeldWeights<Acc, OUT, IN, TEAM, HELD> kept;
    int hidden, apart;

    __device__ __forceinline__ void sit(int batch, int all_units)
    {
        seat = held_seat<TEAM, ROWS>(batch, all_units);
        hidden = all_units;
        kept.chunks = chunks_of<TEAM>(hidden, IN);
        apart = kept.chunks * TEAM * 4;
    }

    __device__ __forceinline__ int size() const { return ROWS * apart; }

    __device__ __forceinline__ int unit(int) const { return seat.unit; }

    __device__ __forceinline__ int row(int) const { return seat.row; }

    __device__ __forceinline__ bool works(int) const { return seat.works; }

    __device__ __forceinline__ int spot(int, int vector) const
    {
        return seat.place * apart + place_of<IN, TEAM>(seat.unit, vector);
    }

    template <typename T>
    __device__ __forceinline__ void bring(const Recurrent<T>& w, Acc* vectors)
    {
        settle(kept, w, seat, hidden, vectors + 2 * size());
    }

    __device__ __forceinline__ void sums(const Acc* vectors, Acc (&found)[PAIRS][OUT]) const
    {
        Acc sum[ROWS * decltype(kept)::SUMS];
        multiply<ROWS>(kept, seat, vectors, sum);
#pragma unroll
        for (int k = 0; k < OUT; ++k) found[0][k] = sum[k];
    }
};

template <int TEAM, int ROWS, int HELD>
struct InTeams {
    template <typename T, typename Acc, int OUT, int IN>
    using Block = HeldBlock<Acc, OUT, IN, TEAM, ROWS, HELD>;
};
