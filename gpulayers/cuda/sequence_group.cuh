// Recurrent networks whose weights are too many for a block, through all time steps in one cooperative launch (Diamos et
// al., "Persistent RNNs: Stashing Recurrent Weights On-Chip", ICML 2016): the kernels *_group_* of sequence_rnn.cu,
// sequence_lstm.cu and sequence_gru.cu.
//
// The blocks form groups. A group takes some examples through all steps. Each of its members has some units, and keeps
// their recurrent weights of all gates in shared memory from the beginning to the end. Ahead, a member gets what all
// units have become in the last step from the L2 cache, and works out its own. Back, it multiplies the gradients of its
// own units by its weights, which gives its share of the gradients of all units; whoever has a unit adds the shares up
// in the members' order. After each step the members of a group, and they alone, wait for one another; what the next
// step needs besides is on its way by then.
//
// The members multiply ByLanes, as below, or ByCores (sequence_tensor.cuh): functions that take one of the two as their
// first argument have an overload for each.

#define GROUP_BOUNDS 256, 1  // threads of a block at most, blocks at a time
#define SIDE 8               // rows and columns of a warp's tile
#define BAND 128             // numbers that a warp reads at once, four a lane

// Neighbours in memory, loaded at once.
template <typename T, int COUNT>
struct __align__(COUNT * sizeof(T)) Several {
    T v[COUNT];
};

// The lanes of a warp take terms of their own. What columns and terms are rounded up to, and the type of dz as a factor.
struct ByLanes {
    template <typename T>
    static constexpr int COLUMNS = SIDE;
    template <typename T>
    static constexpr int TERMS = BAND;
    template <typename T, typename Acc>
    using Factor = Acc;
};

// Who this block is in its group, and how its weights lie: `columns`, one for each gate of each unit, of `pitch` terms
// each, zeros behind the last term and the last column. `chunk`: the examples that are worked on at a time.
struct Member {
    int number, members, group, groups;
    int first_unit, units, most_units;
    int first_row, rows, most_rows, chunk;
    int hidden, pitch, columns;
};

__device__ __forceinline__ int up_to(int number, int multiple)
{
    return (number + multiple - 1) / multiple * multiple;
}

template <typename By, typename T, int GATES>
__device__ __forceinline__ Member member_of(int batch, int hidden, int units, int rows, int chunk)
{
    Member me;
    me.members = (hidden + units - 1) / units;
    me.groups = static_cast<int>(gridDim.x) / me.members;
    me.number = static_cast<int>(blockIdx.x) % me.members;
    me.group = static_cast<int>(blockIdx.x) / me.members;
    me.first_unit = me.number * units;
    me.units = min(units, hidden - me.first_unit);
    me.most_units = units;
    me.first_row = me.group * rows;
    me.rows = min(rows, batch - me.first_row);
    me.most_rows = rows;
    me.chunk = chunk;
    me.hidden = hidden;
    me.pitch = up_to(hidden, By::template TERMS<T>);
    me.columns = up_to(units * GATES, By::template COLUMNS<T>);
    return me;
}

// Tell the other members, and wait for them; each group has a line of memory to count on.
__device__ unsigned arrive(const Member& me, unsigned* arrived)
{
    return arrive(arrived + 32 * me.group, me.number == 0, static_cast<unsigned>(me.members));
}

__device__ void wait(const Member& me, unsigned* arrived, unsigned before)
{
    wait(arrived + 32 * me.group, before);
}

// Example and unit of this thread among a chunk from the member's example `first` on: a thread has one at most.
struct Spot {
    int row, unit;        // within chunk and member
    int example, number;  // within the batch, and of (example, unit) within (batch, hidden)
    int own;              // within what the member has: (rows, units)
    bool works;
};

__device__ __forceinline__ Spot spot_of(const Member& me, int first)
{
    Spot spot;
    spot.row = static_cast<int>(threadIdx.x) / me.most_units;
    spot.unit = static_cast<int>(threadIdx.x) % me.most_units;
    spot.example = me.first_row + first + spot.row;
    spot.number = spot.example * me.hidden + me.first_unit + spot.unit;
    spot.own = (first + spot.row) * me.most_units + spot.unit;
    spot.works = spot.row < min(me.chunk, me.rows - first) && spot.unit < me.units;
    return spot;
}

// What a factor of a product is stored as.
template <typename Factor, typename T>
__device__ __forceinline__ Factor as_factor(ByLanes, T number)
{
    return static_cast<Factor>(number);
}

// Where the weight of a column and a term lies, for the way ahead or back.
template <typename T, bool BACK>
__device__ __forceinline__ int weight_at(ByLanes, const Member& me, int column, int term)
{
    return column * me.pitch + term;
}

// The member's columns of the weights (hidden, GATES * hidden) into `memory`; returns what is behind them.
template <int GATES, bool BACK, typename By, typename T>
__device__ __forceinline__ T* keep(By by, T* memory, const Member& me, const T* __restrict__ weights)
{
    clear(memory, me.columns * me.pitch);
    __syncthreads();
    // Eight neighbouring threads read as many units of one term, which lie side by side in global memory; the next ones
    // read the next terms, which do so in shared memory. All of a thread's loads of a gate are on their way at a time.
    constexpr int ACROSS = 8;
    const int lane = static_cast<int>(threadIdx.x) % ACROSS;
    const int first = static_cast<int>(threadIdx.x) / ACROSS;
    const int step = static_cast<int>(blockDim.x) / ACROSS;
    for (int gate = 0; gate < GATES; ++gate) {
        for (int unit = lane; unit < me.units; unit += ACROSS) {
            const T* const own = weights + gate * me.hidden + me.first_unit + unit;
#pragma unroll 8
            for (int term = first; term < me.hidden; term += step)
                memory[weight_at<T, BACK>(by, me, unit * GATES + gate, term)] =
                    as_factor<T>(by, own[term * GATES * me.hidden]);
        }
    }
    return memory + me.columns * me.pitch;
}

// The i-th of what a member has: its example and unit, and where they are, as in Spot.
struct Place {
    int row, unit, number, own;
};

__device__ __forceinline__ Place place_in(const Member& me, int i)
{
    const int row = i / me.units;
    const int unit = i % me.units;
    return {row, unit, (me.first_row + row) * me.hidden + me.first_unit + unit, row * me.most_units + unit};
}

// ---- ahead

// `count` vectors of all units, one after the other in global memory, which other blocks have written: into shared
// memory, `pitch` apart. Not from the L1 cache, which does not know of them.
template <typename T>
__device__ __forceinline__ void bring(T* vectors, const T* from, int count, int hidden, int pitch)
{
    constexpr int RUN = 16 / sizeof(T);
    if (hidden % RUN == 0) {
        const int runs = hidden / RUN;
        const uint4* const source = reinterpret_cast<const uint4*>(from);
#pragma unroll 4
        for (int i = threadIdx.x; i < count * runs; i += blockDim.x)
            *reinterpret_cast<uint4*>(vectors + i / runs * pitch + i % runs * RUN) = __ldcg(source + i);
    } else {
        for (int i = threadIdx.x; i < count * hidden; i += blockDim.x)
            vectors[i / hidden * pitch + i % hidden] = __ldcg(from + i);
    }
}

template <typename T, typename Acc, int COUNT>
__device__ __forceinline__ void load(Acc (&values)[COUNT], const T* from)
{
    const Several<T, COUNT> read = *reinterpret_cast<const Several<T, COUNT>*>(from);
#pragma unroll
    for (int e = 0; e < COUNT; ++e) values[e] = static_cast<Acc>(read.v[e]);
}

// Of 2 HALF sums of two lanes, HALF / 2 apart, each lane goes on with HALF, to which it adds the other's.
template <int HALF, typename Acc>
__device__ __forceinline__ void halve(Acc (&sum)[SIDE * SIDE], int lane)
{
    const bool upper = (lane & HALF / 2) != 0;
#pragma unroll
    for (int i = 0; i < HALF; ++i) {
        const Acc given = upper ? sum[i] : sum[i + HALF];
        sum[i] = (upper ? sum[i + HALF] : sum[i]) + __shfl_xor_sync(ALL_LANES, given, HALF / 2);
    }
}

// A tile of sums over all terms. Lanes take terms of their own; each exchange then halves the sums that a lane works on,
// until it has two: those of row lane / 4, columns lane % 4 * 2 and the next.
template <typename T, typename Acc>
__device__ __forceinline__ Several<Acc, 2> sum_tile(const T* vectors, const T* weights, int pitch)
{
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Acc sum[SIDE * SIDE];
#pragma unroll
    for (int i = 0; i < SIDE * SIDE; ++i) sum[i] = static_cast<Acc>(0);
#pragma unroll 1
    for (int term = 4 * lane; term < pitch; term += BAND) {
        Acc w[SIDE][4];
#pragma unroll
        for (int col = 0; col < SIDE; ++col) load(w[col], weights + col * pitch + term);
#pragma unroll
        for (int row = 0; row < SIDE; ++row) {
            Acc x[4];
            load(x, vectors + row * pitch + term);
#pragma unroll
            for (int col = 0; col < SIDE; ++col)
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[row * SIDE + col] += w[col][e] * x[e];
        }
    }
    halve<32>(sum, lane);
    halve<16>(sum, lane);
    halve<8>(sum, lane);
    halve<4>(sum, lane);
    halve<2>(sum, lane);
    return {sum[0], sum[1]};
}

// Where a chunk's vectors lie, and their sums (chunk, columns).
template <typename T, typename Acc>
struct Room {
    T* vectors;
    Acc* sums;
};

template <typename Acc, typename T>
__device__ __forceinline__ Room<T, Acc> room_in(ByLanes, const Member& me, T* memory)
{
    clear(memory, me.chunk * me.pitch);
    return {memory, reinterpret_cast<Acc*>(memory + me.chunk * me.pitch)};
}

// sums = the `count` vectors from `state` times the member's weights. Nobody is to need the last ones.
template <int GATES, typename T, typename Acc>
__device__ __forceinline__ void sum_all(ByLanes, const Member& me, const Room<T, Acc>& room, const T* weights,
                                        const T* state, int count)
{
    bring(room.vectors, state, count, me.hidden, me.pitch);
    __syncthreads();
    const int across = me.columns / SIDE;
    const int tiles = (count + SIDE - 1) / SIDE * across;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int tile = static_cast<int>(threadIdx.x) / 32; tile < tiles; tile += warps) {
        const int row = tile / across * SIDE;
        const int col = tile % across * SIDE;
        const Several<Acc, 2> two =
            sum_tile<T, Acc>(room.vectors + row * me.pitch, weights + col * me.pitch, me.pitch);
        *reinterpret_cast<Several<Acc, 2>*>(room.sums + (row + lane / 4) * me.columns + col + lane % 4 * 2) = two;
    }
    __syncthreads();
}

// The sums of an example and a unit, all gates'.
template <int GATES, typename T, typename Acc>
__device__ __forceinline__ void read_sums(ByLanes, const Member& me, const Room<T, Acc>& room, const Spot& spot,
                                          Acc (&found)[GATES])
{
#pragma unroll
    for (int k = 0; k < GATES; ++k) found[k] = room.sums[spot.row * me.columns + spot.unit * GATES + k];
}

// ---- back

// Where the share is that `from` has in the gradient of unit `unit` of member `to`.
__device__ __forceinline__ int share_at(const Member& me, int turn, int to, int from, int row, int unit)
{
    const int list = ((turn * me.groups + me.group) * me.members + to) * me.members + from;
    return (list * me.most_rows + row) * me.most_units + unit;
}

// The shares of all members in the gradient of this thread's example and unit, which they have left in `turn`.
template <typename Acc>
__device__ __forceinline__ Acc add_shares(const Member& me, const Acc* between, int turn, int row, int unit)
{
    const Acc* const mine = between + share_at(me, turn, me.number, 0, row, unit);
    const int apart = me.most_rows * me.most_units;
    Acc sum = static_cast<Acc>(0);
#pragma unroll 8
    for (int from = 0; from < me.members; ++from) sum += __ldcg(mine + from * apart);
    return sum;
}

// How far apart the examples of dz are, in numbers.
template <typename T>
__device__ __forceinline__ int apart_of(ByLanes, const Member& me, const T*)
{
    return me.columns;
}

// This member's shares in the gradients of all units: dz (chunk, columns) of `count` examples from the group's number
// `first` on times its weights. A lane has two units of SIDE examples.
template <typename T, typename Acc>
__device__ __forceinline__ void share_all(ByLanes, const Member& me, Acc* between, int turn, const Acc* dz,
                                          const T* weights, int first, int count)
{
    const int bands = (me.hidden + 63) / 64;
    const int tiles = (count + SIDE - 1) / SIDE * bands;
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int tile = static_cast<int>(threadIdx.x) / 32; tile < tiles; tile += warps) {
        const int row = tile / bands * SIDE;
        const int unit = tile % bands * 64 + static_cast<int>(threadIdx.x) % 32 * 2;
        Acc sum[SIDE][2] = {};
#pragma unroll 1
        for (int col = 0; col < me.columns; col += 4) {
            Acc w[4][2];
#pragma unroll
            for (int k = 0; k < 4; ++k) load(w[k], weights + (col + k) * me.pitch + unit);
#pragma unroll
            for (int r = 0; r < SIDE; ++r) {
                Acc d[4];
                load(d, dz + (row + r) * me.columns + col);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    sum[r][0] += w[k][0] * d[k];
                    sum[r][1] += w[k][1] * d[k];
                }
            }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int to = (unit + e) / me.most_units;
            const int place = share_at(me, turn, to, me.number, first + row, (unit + e) % me.most_units);
#pragma unroll
            for (int r = 0; r < SIDE; ++r)
                if (unit + e < me.hidden && row + r < count) between[place + r * me.most_units] = sum[r][e];
        }
    }
}
