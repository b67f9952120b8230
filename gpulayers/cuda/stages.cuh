// Factors of a product on their way to tensor cores (from sm_80 on), for pipeline.cuh and group.cuh; needs tile.cuh,
// copies.cuh.
//
// The terms of the factors come ROW bytes of each line at a time, a stage, of which shared memory holds STAGES. Each
// thread asks for its runs of 16 bytes (tile.cuh, "factors by runs") by copies that go on by themselves, zeros where a
// factor has nothing.
//
// A stage holds a factor as memory does. Where terms lie together: a row for each line, its runs at c ^ f(row). Line
// 32 q + 4 g + i lies in row 32 q + 8 i + g, so that 8 lines of which a lane is to have one each come in 8 neighbouring
// rows: the four of a thread are neighbours then, a window of pooling. Where lines lie together: a row for each term,
// whose runs lie at c ^ f(term). Neither the copies nor ldmatrix, by 8 lanes at a time, meet in a bank so
// (tests/kernels/test_pipeline.py counts).

#define WARP 32
#define RUN_BYTES 16
#define LINE_BYTES 128  // that the banks of shared memory hold

struct Tensor {
    static constexpr int HEIGHT = 128, WIDTH = 64, ROW = 64, STAGES = 3;
    static constexpr bool LARGE = true, TENSOR = true;
};
struct TensorLarge {
    static constexpr int HEIGHT = 128, WIDTH = 128, ROW = 64, STAGES = 4;
    static constexpr bool LARGE = true, TENSOR = true;
};
struct TensorTall {
    static constexpr int HEIGHT = 256, WIDTH = 32, ROW = 64, STAGES = 3;
    static constexpr bool LARGE = true, TENSOR = true;
};

// Where in a stage, from the beginning of a factor's part, what is.
template <typename T, typename Tile, int LINES, bool TERMS_LIE_TOGETHER>
struct Layout;

template <typename T, typename Tile, int LINES>
struct Layout<T, Tile, LINES, true> {
    static constexpr int ROWS = LINES, RUNS = Tile::ROW / RUN_BYTES;  // a row

    __device__ static __forceinline__ int place_of_run(int row, int run)
    {
        return row * Tile::ROW + (run ^ row / (LINE_BYTES / Tile::ROW) % RUNS) * RUN_BYTES;
    }
    // The line of a row, and the first term of a run.
    __device__ static __forceinline__ int line_in(int row, int)
    {
        return row / 32 * 32 + row % 8 * 4 + row / 8 % 4;
    }
    __device__ static __forceinline__ int term_in(int, int run)
    {
        return run * static_cast<int>(RUN_BYTES / sizeof(T));
    }
};

template <typename T, typename Tile, int LINES>
struct Layout<T, Tile, LINES, false> {
    static constexpr int ROWS = Tile::ROW / sizeof(T), RUNS = LINES * sizeof(T) / RUN_BYTES;

    __device__ static __forceinline__ int place_of_run(int row, int run)
    {
        const int other = sizeof(T) == 4 ? row % 4 * 2 : RUNS == 4 ? row / 2 % RUNS : row % 8;
        return (row * RUNS + (run ^ other)) * RUN_BYTES;
    }
    __device__ static __forceinline__ int line_in(int, int run)
    {
        return run * static_cast<int>(RUN_BYTES / sizeof(T));
    }
    __device__ static __forceinline__ int term_in(int row, int)
    {
        return row;
    }
};

// ---- from memory to shared memory

template <typename Tile>
constexpr int STAGE_BYTES = (Tile::HEIGHT + Tile::WIDTH) * Tile::ROW;

template <typename Factor>
constexpr bool TERMS_TOGETHER = decltype(Factor::terms_lie_together)(true);

// Runs of a factor that a thread asks for, all of the same run's number and rows STEP apart. Of fewer runs than threads
// the last ones have none.
template <typename Tile, int LINES>
constexpr int OWN_RUNS = (LINES * Tile::ROW / RUN_BYTES + TILE_BLOCK - 1) / TILE_BLOCK;
template <typename Tile, int LINES>
constexpr int ASKING = LINES * Tile::ROW / RUN_BYTES / OWN_RUNS<Tile, LINES>;  // threads

template <typename Layout>
constexpr int STEP = TILE_BLOCK / Layout::RUNS;

__device__ __forceinline__ unsigned char* pipeline_memory()
{
    extern __shared__ __align__(128) unsigned char pipeline[];
    return pipeline;
}

// Whether tiles are worked out by group.cuh, whose stages, of longer rows, begin at multiples of 1024.
template <typename Tile>
constexpr bool BY_GROUPS = false;

template <typename Tile>
__device__ __forceinline__ unsigned char* stages_of()
{
    unsigned char* const memory = pipeline_memory();
    return Tile::ROW == LINE_BYTES ? memory + (0u - shared_address(memory)) % 1024 : memory;
}

// The winners of a thread's run wait behind all stages, 8 bytes each.
template <typename Tile, int LINES>
__device__ __forceinline__ unsigned char* place_of_winners(int stage, int slot)
{
    const int number = (stage * OWN_RUNS<Tile, LINES> + slot) * TILE_BLOCK + static_cast<int>(threadIdx.x);
    return stages_of<Tile>() + Tile::STAGES * STAGE_BYTES<Tile> + number * 8;
}

// What a thread knows of the runs that it asks for: what they have to do with their lines (with one line, where lines lie
// together), and `quarters`: two bits for each run of the last stages.
template <typename Tile, int LINES>
constexpr int QUARTER_BITS = 2 * OWN_RUNS<Tile, LINES>;

template <typename Line, int COUNT>
struct Asked {
    Line line[COUNT];
    unsigned quarters;
};

template <typename T, typename Tile, int LINES, typename Factor>
__device__ __forceinline__ auto begin_asking(const Factor& factor, int first_line)
{
    constexpr bool TOGETHER = TERMS_TOGETHER<Factor>;
    using Lies = Layout<T, Tile, LINES, TOGETHER>;
    constexpr int COUNT = TOGETHER ? OWN_RUNS<Tile, LINES> : 1;
    const int row = static_cast<int>(threadIdx.x) / Lies::RUNS, run = static_cast<int>(threadIdx.x) % Lies::RUNS;
    Asked<decltype(kept_line(factor, 0)), COUNT> asked;
#pragma unroll
    for (int s = 0; s < COUNT; ++s)
        asked.line[s] = kept_line(factor, first_line + Lies::line_in(row + s * STEP<Lies>, run));
    asked.quarters = 0;
    return asked;
}

// The same contents in all stages: this thread's runs of a line of ones. (Beyond the last term the other factor is zero.)
template <typename T, typename Tile, int LINES, typename Factor, typename Line, int COUNT>
__device__ __forceinline__ void place_ones(const Factor& factor, const Asked<Line, COUNT>& asked, unsigned char* part)
{
    constexpr bool TOGETHER = TERMS_TOGETHER<Factor>;
    using Lies = Layout<T, Tile, LINES, TOGETHER>;
    const int row = static_cast<int>(threadIdx.x) / Lies::RUNS, run = static_cast<int>(threadIdx.x) % Lies::RUNS;
    if (static_cast<int>(threadIdx.x) >= ASKING<Tile, LINES>) return;
#pragma unroll
    for (int s = 0; s < OWN_RUNS<Tile, LINES>; ++s) {
        if (!is_ones(asked.line[TOGETHER ? s : 0])) continue;
        unsigned words[4] = {0, 0, 0, 0};
        set_ones<T>(TOGETHER, words);
        unsigned char* const to = part + Lies::place_of_run(row + s * STEP<Lies>, run);
        *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
    }
}

// Asks for this thread's runs of a stage: the terms `first` up to below `to`. Their copies are under way after this.
template <typename T, typename Tile, int LINES, typename Factor, typename Line, int COUNT>
__device__ __forceinline__ void ask(const Factor& factor, Asked<Line, COUNT>& asked, int stage, unsigned char* part,
                                    int first, int to)
{
    constexpr bool TOGETHER = TERMS_TOGETHER<Factor>;
    using Lies = Layout<T, Tile, LINES, TOGETHER>;
    const int row = static_cast<int>(threadIdx.x) / Lies::RUNS, number = static_cast<int>(threadIdx.x) % Lies::RUNS;
    unsigned quarters = 0;
    if (static_cast<int>(threadIdx.x) >= ASKING<Tile, LINES>) return;
#pragma unroll
    for (int s = 0; s < OWN_RUNS<Tile, LINES>; ++s) {
        const auto& line = asked.line[TOGETHER ? s : 0];
        if (is_ones(line)) continue;
        const int own = row + s * STEP<Lies>, step = Lies::term_in(own, number);
        const Origin<T> run = origin_of<T>(factor, line, kept_term(factor, first, step));
        const bool there = run.there && first + step < to;
        copy_run(shared_address(part + Lies::place_of_run(own, number)), run.from, there);
        if (has_winners(factor))
            copy_few<RUN_BYTES / sizeof(T)>(shared_address(place_of_winners<Tile, LINES>(stage, s)),
                                            winners_of(factor, run.from), there);
        quarters |= static_cast<unsigned>(run.quarter) << (2 * s);
    }
    asked.quarters = asked.quarters << QUARTER_BITS<Tile, LINES> | quarters;
}

// Of this thread's runs of a stage, asked for `ago` stages before the last one, only what has won stays.
template <typename T, typename Tile, int LINES, typename Factor, typename Line, int COUNT>
__device__ __forceinline__ void keep_own_winners(const Factor& factor, const Asked<Line, COUNT>& asked, int stage,
                                                 unsigned char* part, int ago)
{
    using Lies = Layout<T, Tile, LINES, TERMS_TOGETHER<Factor>>;
    if (!has_winners(factor) || static_cast<int>(threadIdx.x) >= ASKING<Tile, LINES>) return;
    const int row = static_cast<int>(threadIdx.x) / Lies::RUNS, run = static_cast<int>(threadIdx.x) % Lies::RUNS;
#pragma unroll
    for (int s = 0; s < OWN_RUNS<Tile, LINES>; ++s) {
        unsigned char* const place = part + Lies::place_of_run(row + s * STEP<Lies>, run);
        unsigned words[4];
        load_words(place, words);
        unsigned winners[RUN_BYTES / sizeof(T) / 4];
        load_words(place_of_winners<Tile, LINES>(stage, s), winners);
        keep_winners<T>(words, winners, asked.quarters >> (QUARTER_BITS<Tile, LINES> * ago + 2 * s) & 3);
        *reinterpret_cast<uint4*>(place) = {words[0], words[1], words[2], words[3]};
    }
}

// A factor may keep what it knows of its terms in shared memory (conv.cuh), NOTED of them at a time, one a thread: a block
// asks for runs of what `noting` gives, once it has waited for begin_notes. Those of the next NOTED terms but one are
// written by go_on_noting, where asking comes to the next ones.
#define NOTED TILE_BLOCK

template <typename Factor>
__device__ __forceinline__ Factor noting(const Factor& factor, int)
{
    return factor;
}

template <typename Factor>
__device__ __forceinline__ void begin_notes(const Factor&)
{
}

template <typename Factor>
__device__ __forceinline__ void go_on_noting(const Factor&, int)
{
}
