// The products of the groups of sequence_group.cuh by tensor cores, with sums in float32.
//
// The member's weights lie in shared memory as fragments of them, from the beginning to the end: 16 lines (columns
// ahead, terms back) by 8 words of the sum's terms, of which each lane finds its four words together. TF32 has a term in
// a word, half types have two. Eight examples are the other factor. Its words come by runs of 16, four together for a
// lane, which two products take: the terms of a sum are in another order than in memory, the same for both factors.
//
// Ahead, the warps share the terms: so what a lane needs of the state comes right from the L2 cache into its registers,
// once, and whoever finishes a unit adds up the warps' sums. Back, they share the units.

#define LINES 16    // of a fragment
#define EXAMPLES 8  // that a product has
#define RUN_WORDS 16
#define BESIDE 4    // keeps the sums of neighbouring examples in different banks

template <typename T>
constexpr int RUN = 4 * RUN_WORDS / sizeof(T);  // terms of a run

struct ByCores {
    template <typename T>
    static constexpr int COLUMNS = RUN<T>;
    template <typename T>
    static constexpr int TERMS = RUN<T>;
    template <typename T, typename Acc>
    using Factor = T;
};

template <typename Factor, typename T>
__device__ __forceinline__ Factor as_factor(ByCores, T number)
{
    if constexpr (sizeof(T) == 4)
        return __uint_as_float(to_tf32(__float_as_uint(number)));
    else
        return number;
}

// Number of a line's term among fragments, `tiles` of them above one another. Word 4 t + e of a run is that of the lanes
// with t = lane % 4: their word t (e even) or t + 4 (odd) of the run's first product (e < 2) or its second.
template <typename T>
__device__ __forceinline__ int fragment_at(int tiles, int line, int term)
{
    constexpr int EACH = 4 / sizeof(T);  // terms of a word
    const int word = term / EACH;
    const int lane = line % 8 * 4 + word % RUN_WORDS / 4;
    const int own = word % 2 * 2 + line / 8 % 2;
    const int product = (word / RUN_WORDS * tiles + line / LINES) * 2 + word % 4 / 2;
    return ((product * 32 + lane) * 4 + own) * EACH + term % EACH;
}

template <typename T, bool BACK>
__device__ __forceinline__ int weight_at(ByCores, const Member& me, int column, int term)
{
    return BACK ? fragment_at<T>(me.pitch / LINES, term, column) : fragment_at<T>(me.columns / LINES, column, term);
}

// What a lane has of a run of EXAMPLES: its four words of example lane / 4.
using Words = Pack<unsigned, 4>;

// The sums of TILES fragments above one another by ACROSS times EXAMPLES. Of each a lane has four: lines lane / 4 (0, 1)
// and 8 on (2, 3), examples lane % 4 * 2 and the next.
template <int TILES, int ACROSS>
struct TileSums {
    float of[TILES][ACROSS][4];
};

// Their products over a run, from the tile `first` on; what is beyond the last tile is computed as that one, for nobody:
// so no branch keeps the loads apart from each other.
template <typename T, int TILES, int ACROSS>
__device__ __forceinline__ void add_run(TileSums<TILES, ACROSS>& sums, const T* fragments, int tiles, int first, int run,
                                        const Words (&words)[ACROSS])
{
    const Words* const own = reinterpret_cast<const Words*>(fragments) + static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            const Words a = own[((run * tiles + min(first + m, tiles - 1)) * 2 + half) * 32];
#pragma unroll
            for (int n = 0; n < ACROSS; ++n) {
                float(&s)[4] = sums.of[m][n];
                multiply_fragments(static_cast<const T*>(nullptr), s[0], s[1], s[2], s[3], a.item[0], a.item[1],
                                   a.item[2], a.item[3], words[n].item[2 * half], words[n].item[2 * half + 1]);
            }
        }
}

// ---- ahead

#define AHEAD_RUNS 4  // whose words are asked for at a time

template <typename Acc, typename T>
__device__ __forceinline__ Room<T, Acc> room_in(ByCores, const Member& me, T* memory)
{
    return {nullptr, reinterpret_cast<Acc*>(memory)};
}

// Where a lane's words of a run are in a state, as a number within it; how many numbers they have: none beyond the last
// run, the last example or the last unit.
struct Part {
    int at, count;
};

template <typename T>
__device__ __forceinline__ Part part_of(int example, int count, int run, int to, int hidden)
{
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int term = run * RUN<T> + lane % 4 * (RUN<T> / 4);
    const int row = example + lane / 4;
    const bool there = run < to && row < count && term < hidden;
    return {there ? row * hidden + term : 0, there ? min(RUN<T> / 4, hidden - term) : 0};
}

// 16 bytes that other blocks have written, zeros if they are not `there`; asked for in any case, so that no branch keeps
// loads apart from each other. Not from the L1 cache, which does not know of them.
template <typename T>
__device__ __forceinline__ Words words_at(const T* from, bool there)
{
    const uint4 read = __ldcg(reinterpret_cast<const uint4*>(from));
    return {there ? read.x : 0, there ? read.y : 0, there ? read.z : 0, there ? read.w : 0};
}

// As many numbers one by one.
template <typename T>
__device__ __forceinline__ Words gather_words(const T* from, int count)
{
    constexpr int EACH = 4 / sizeof(T);
    Words words = {};
#pragma unroll
    for (int e = 0; e < 4 * EACH; ++e)
        if (e < count) words.item[e / EACH] |= bits_of(__ldcg(from + e)) << (e % EACH * 16);
    return words;
}

// A lane's words of the runs `first` up to below `to`, of the examples from `row` on.
template <typename T, int ACROSS>
__device__ __forceinline__ void bring(Words (&words)[AHEAD_RUNS][ACROSS], const T* state, int hidden, int row, int count,
                                      int first, int to)
{
    if (hidden % (RUN<T> / 4) == 0) {
#pragma unroll
        for (int i = 0; i < AHEAD_RUNS; ++i)
#pragma unroll
            for (int n = 0; n < ACROSS; ++n) {
                const Part part = part_of<T>(row + n * EXAMPLES, count, first + i, to, hidden);
                words[i][n] = words_at(state + part.at, part.count > 0);
            }
    } else {
#pragma unroll
        for (int i = 0; i < AHEAD_RUNS; ++i)
#pragma unroll
            for (int n = 0; n < ACROSS; ++n) {
                const Part part = part_of<T>(row + n * EXAMPLES, count, first + i, to, hidden);
                words[i][n] = gather_words(state + part.at, part.count);
            }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (auto& run : words)
#pragma unroll
            for (Words& of : run)
#pragma unroll
                for (unsigned& item : of.item) item = to_tf32(item);
    }
}

// Where the sum of a warp is.
__device__ __forceinline__ int sum_at(const Member& me, int warp, int row, int column)
{
    return (warp * me.chunk + row) * (me.columns + BESIDE) + column;
}

// This warp's part of the sums of the examples from `row` on, and the columns from the tile `tile` on.
template <int TILES, int ACROSS, typename T>
__device__ __forceinline__ void sum_tiles(const Member& me, const Room<T, float>& room, const T* weights,
                                          const T* state, int row, int count, int tile)
{
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    const int tiles = me.columns / LINES;
    const int runs = me.pitch / RUN<T>;
    const int mine = (runs + warps - 1) / warps;
    const int to = min((warp + 1) * mine, runs);
    TileSums<TILES, ACROSS> sums = {};
#pragma unroll 1
    for (int first = warp * mine; first < to; first += AHEAD_RUNS) {
        Words words[AHEAD_RUNS][ACROSS];
        bring(words, state, me.hidden, row, count, first, to);
#pragma unroll
        for (int i = 0; i < AHEAD_RUNS; ++i)
            if (first + i < to) add_run(sums, weights, tiles, tile, first + i, words[i]);
    }
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        if (tile + m >= tiles) continue;
        const int column = (tile + m) * LINES + lane / 4;
#pragma unroll
        for (int n = 0; n < ACROSS; ++n) {
            const int example = row + n * EXAMPLES + lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 4; ++i)
                room.sums[sum_at(me, warp, example + i % 2, column + i / 2 * 8)] = sums.of[m][n][i];
        }
    }
}

template <int GATES, typename T>
__device__ __forceinline__ void sum_all(ByCores, const Member& me, const Room<T, float>& room, const T* weights,
                                        const T* state, int count)
{
    constexpr int TILES = GATES > 1 ? 4 : 2;
    for (int row = 0; row < count; row += 2 * EXAMPLES)
        for (int tile = 0; tile < me.columns / LINES; tile += TILES)
            if (count - row > EXAMPLES)
                sum_tiles<TILES, 2>(me, room, weights, state, row, count, tile);
            else
                sum_tiles<TILES, 1>(me, room, weights, state, row, count, tile);
    __syncthreads();
}

template <int GATES, typename T>
__device__ __forceinline__ void read_sums(ByCores, const Member& me, const Room<T, float>& room, const Spot& spot,
                                          float (&found)[GATES])
{
#pragma unroll
    for (int k = 0; k < GATES; ++k) found[k] = 0.0f;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
        const float* const sums = room.sums + sum_at(me, warp, spot.row, spot.unit * GATES);
        float read[GATES];
        if constexpr (GATES == 4) {
            load(read, sums);  // at once
        } else {
#pragma unroll
            for (int k = 0; k < GATES; ++k) read[k] = sums[k];
        }
#pragma unroll
        for (int k = 0; k < GATES; ++k) found[k] += read[k];
    }
}

// ---- back

#define BACK_TILES 4

// An odd number of runs: neighbouring examples are in different banks.
template <typename T>
__device__ __forceinline__ int apart_of(ByCores, const Member& me, const T*)
{
    return (me.columns / RUN<T> | 1) * RUN<T>;
}

// The shares of the examples from `row` on, of the units from the tile `tile` on.
template <int ACROSS, typename T>
__device__ __forceinline__ void share_tiles(const Member& me, float* between, int turn, const T* dz, const T* weights,
                                            int first, int row, int count, int tile)
{
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int tiles = me.pitch / LINES;
    const int apart = apart_of(ByCores(), me, dz);
    const T* const own = dz + (row + lane / 4) * apart + lane % 4 * (RUN<T> / 4);
    TileSums<BACK_TILES, ACROSS> sums = {};
#pragma unroll 2
    for (int run = 0; run < me.columns / RUN<T>; ++run) {
        Words words[ACROSS];
#pragma unroll
        for (int n = 0; n < ACROSS; ++n)
            words[n] = *reinterpret_cast<const Words*>(own + n * EXAMPLES * apart + run * RUN<T>);
        add_run(sums, weights, tiles, tile, run, words);
    }
#pragma unroll
    for (int m = 0; m < BACK_TILES; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            const int unit = (tile + m) * LINES + upper * 8 + lane / 4;
            const int to = unit / me.most_units;
            const int place = share_at(me, turn, to, me.number, first, unit % me.most_units);
#pragma unroll
            for (int n = 0; n < ACROSS; ++n)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int example = row + n * EXAMPLES + lane % 4 * 2 + i;
                    if (unit < me.hidden && example < count)
                        between[place + example * me.most_units] = sums.of[m][n][2 * upper + i];
                }
        }
}

template <typename T>
__device__ __forceinline__ void share_all(ByCores, const Member& me, float* between, int turn, const T* dz,
                                          const T* weights, int first, int count)
{
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    for (int row = 0; row < count; row += 2 * EXAMPLES)
        for (int tile = warp * BACK_TILES; tile < me.pitch / LINES; tile += warps * BACK_TILES)
            if (count - row > EXAMPLES)
                share_tiles<2>(me, between, turn, dz, weights, first, row, count, tile);
            else
                share_tiles<1>(me, between, turn, dz, weights, first, row, count, tile);
}
