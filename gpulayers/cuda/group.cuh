// Tiles of a product by warpgroups (warpgroup.cuh), of half types, on sm_90a alone: twice 128 rows by WIDTH columns, each
// warpgroup's as two products of 64 rows, of 16 terms at a time. Both factors are read where stages.cuh's copies put
// them: no thread sees them.
//
// Of the STAGES in shared memory one is multiplied, the one before may still be, and the others are on their way. A
// barrier a stage says that the next one is there, and that the one before the last is multiplied by everybody: it is
// asked for anew.
//
// A stage holds a factor in rows of 128 bytes, 8 runs: 64 terms of a line, or 64 lines of a term, after which all terms
// of the next 64 lines follow. Which line lies where is such that a thread has the sums of 4 lines below one another (a
// window of pooling), or of lines 8 apart, where lines lie together.

#define GROUP_ROW 128
#define GROUP_BYTES (64 * GROUP_ROW)  // of 64 lines of a stage, either way
#define GROUP_PATTERN 1024            // bytes after which the places of runs repeat

struct Warpgroup {
    static constexpr int HEIGHT = 256, WIDTH = 64, ROW = GROUP_ROW, STAGES = 4;
    static constexpr bool LARGE = true, TENSOR = true;
};
struct WarpgroupLarge {
    static constexpr int HEIGHT = 256, WIDTH = 128, ROW = GROUP_ROW, STAGES = 3;
    static constexpr bool LARGE = true, TENSOR = true;
};

template <>
constexpr bool BY_GROUPS<Warpgroup> = true;
template <>
constexpr bool BY_GROUPS<WarpgroupLarge> = true;

// A tile as the left factor and as the right one see it: their lines have other places.
template <typename Tile>
struct RowsOf : Tile {
    // The line in a row of terms: a thread has the sums of rows g, g + 8, g + 64, g + 72 of its warp.
    __device__ static __forceinline__ int line_in_row(int row)
    {
        return row / 128 * 128 + (row % 64 / 16 * 8 + row % 8) * 4 + row % 128 / 64 * 2 + row % 16 / 8;
    }
    // The first line of a run of lines.
    __device__ static __forceinline__ int line_of_run(int run)
    {
        return run / 16 * 128 + run % 8 / 2 * 32 + run % 16 / 8 * 16 + run % 2 * 8;
    }
};
template <typename Tile>
struct ColumnsOf : Tile {
    // A thread has the sums of columns 8 j + 2 t and the next: they become 8 t + 2 j and the next.
    __device__ static __forceinline__ int line_in_row(int row)
    {
        return row / 32 * 32 + row % 8 / 2 * 8 + row % 32 / 8 * 2 + row % 2;
    }
    __device__ static __forceinline__ int line_of_run(int run) { return 8 * run; }
};

// Where in a stage what is (see Layout), for either side.
template <typename T, typename Side, int LINES>
struct LayoutByLine {
    static constexpr int ROWS = LINES, RUNS = GROUP_ROW / RUN_BYTES;

    __device__ static __forceinline__ int place_of_run(int row, int run)
    {
        return row * GROUP_ROW + (run ^ row % 8) * RUN_BYTES;
    }
    __device__ static __forceinline__ int line_in(int row, int) { return Side::line_in_row(row); }
    __device__ static __forceinline__ int term_in(int, int run)
    {
        return run * static_cast<int>(RUN_BYTES / sizeof(T));
    }
};
template <typename T, typename Side, int LINES>
struct LayoutByTerm {
    static constexpr int ROWS = GROUP_ROW / sizeof(T), RUNS = LINES * sizeof(T) / RUN_BYTES;

    __device__ static __forceinline__ int place_of_run(int row, int run)
    {
        return run / 8 * GROUP_BYTES + row * GROUP_ROW + (run % 8 ^ row % 8) * RUN_BYTES;
    }
    __device__ static __forceinline__ int line_in(int, int run) { return Side::line_of_run(run); }
    __device__ static __forceinline__ int term_in(int row, int) { return row; }
};

template <typename T, typename Tile, int LINES>
struct Layout<T, RowsOf<Tile>, LINES, true> : LayoutByLine<T, RowsOf<Tile>, LINES> {};
template <typename T, typename Tile, int LINES>
struct Layout<T, RowsOf<Tile>, LINES, false> : LayoutByTerm<T, RowsOf<Tile>, LINES> {};
template <typename T, typename Tile, int LINES>
struct Layout<T, ColumnsOf<Tile>, LINES, true> : LayoutByLine<T, ColumnsOf<Tile>, LINES> {};
template <typename T, typename Tile, int LINES>
struct Layout<T, ColumnsOf<Tile>, LINES, false> : LayoutByTerm<T, ColumnsOf<Tile>, LINES> {};

// The 16 terms number `step` of a stage, of the 64 lines number `number` and what follows them.
template <bool TERMS_LIE_TOGETHER>
__device__ __forceinline__ unsigned long long descriptor_in(unsigned part, int number, int step)
{
    const int terms = TERMS_LIE_TOGETHER ? step * 2 * RUN_BYTES : step * 16 * GROUP_ROW;
    return descriptor_of(part + number * GROUP_BYTES + terms, GROUP_PATTERN, GROUP_BYTES);
}

template <typename T, typename Tile, typename Left, typename Right>
__device__ __forceinline__ void work_out_by_groups(const Share& share, const Left& left, const Right& right,
                                                   const Target<T, float>& target, int from, int to)
{
    constexpr int HEIGHT = Tile::HEIGHT, WIDTH = Tile::WIDTH, STAGES = Tile::STAGES, AHEAD = STAGES - 2;
    constexpr int TERMS = Tile::ROW / sizeof(T);
    constexpr bool ROWS_TOGETHER = TERMS_TOGETHER<Left>, COLUMNS_TOGETHER = TERMS_TOGETHER<Right>;
    using Rows = RowsOf<Tile>;
    using Columns = ColumnsOf<Tile>;
    const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    const int group = warp / 4;
    float sums[2][WIDTH / 2] = {};
    auto rows = begin_asking<T, Rows, HEIGHT>(left, share.row * HEIGHT);
    auto columns = begin_asking<T, Columns, WIDTH>(right, share.col * WIDTH);

    const auto part_of = [&](int stage) { return stages_of<Tile>() + stage * STAGE_BYTES<Tile>; };
    const auto ask_for = [&](int stage, int first) {
        ask<T, Rows, HEIGHT>(left, rows, stage, part_of(stage), first, to);
        ask<T, Columns, WIDTH>(right, columns, stage, part_of(stage) + HEIGHT * Tile::ROW, first, to);
        close_group();
    };

#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage) {
        place_ones<T, Rows, HEIGHT>(left, rows, part_of(stage));
        place_ones<T, Columns, WIDTH>(right, columns, part_of(stage) + HEIGHT * Tile::ROW);
    }
    int next = from;
#pragma unroll
    for (int stage = 0; stage < AHEAD; ++stage, next += TERMS) ask_for(stage, next);
    int stage = 0, free = AHEAD;
#pragma unroll 1
    for (int start = from; start < to; start += TERMS, next += TERMS) {
        wait_for_groups<AHEAD - 1>();
        keep_own_winners<T, Rows, HEIGHT>(left, rows, stage, part_of(stage), AHEAD - 1);
        keep_own_winners<T, Columns, WIDTH>(right, columns, stage, part_of(stage) + HEIGHT * Tile::ROW, AHEAD - 1);
        show_to_products();
        wait_for_products<1>();
        __syncthreads();

        const unsigned a = shared_address(part_of(stage)), b = a + HEIGHT * Tile::ROW;
        begin_products();
#pragma unroll
        for (int step = 0; step < TERMS / 16; ++step)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                multiply_by_group<!ROWS_TOGETHER, !COLUMNS_TOGETHER>(
                    static_cast<const T*>(nullptr), sums[half],
                    descriptor_in<ROWS_TOGETHER>(a, 2 * group + half, step), descriptor_in<COLUMNS_TOGETHER>(b, 0, step));
        close_products();

        ask_for(free, next);
        free = free + 1 == STAGES ? 0 : free + 1;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    wait_for_groups<0>();
    wait_for_products<0>();
    hold(sums[0]);
    hold(sums[1]);

    const int own = ROWS_TOGETHER ? (warp % 4 * 8 + lane / 4) * 4 : warp % 4 * 32 + lane / 4;
    const int row = share.row * HEIGHT + group * 128 + own;
    const int col = share.col * WIDTH + lane % 4 * 8;
#pragma unroll
    for (int part = 0; part < WIDTH / 32; ++part) {
        float of_row[OWN][8];
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const int j = COLUMNS_TOGETHER ? n / 2 : n % 4, e = COLUMNS_TOGETHER ? n % 2 : n / 4;
                of_row[i][n] = sums[i / 2][4 * (4 * part + j) + 2 * (i % 2) + e];
            }
            if constexpr (!COLUMNS_TOGETHER) gather_columns(of_row[i]);
        }
        put(target, share, row, col + 32 * part, of_row, ROWS_TOGETHER ? 1 : 8);
    }
}
