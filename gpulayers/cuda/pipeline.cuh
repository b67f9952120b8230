// Tiles of a product by tensor cores (from sm_80 on): float is rounded to TF32, to the nearest, half types go as they
// are; sums are float32. A warp works out STRIPS times 32 rows by 32 columns.
//
// The terms of the factors come ROW bytes of each line at a time, a stage. Of the STAGES in shared memory one is
// multiplied while the others are on their way: each thread asks for its runs of 16 bytes (tile.cuh, "factors by runs")
// by copies that go on by themselves, zeros where a factor has nothing, and waits for them STAGES - 1 stages later. One
// barrier a stage says that all runs of the next one are there, and that the last one can be overwritten. What the
// tensor cores take of the next 8 words is read while they multiply these.
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
        const int other = sizeof(T) == 2 ? row % 8 : row % 4 * 2;
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

// Runs of a factor that a thread asks for, all of the same run's number and rows STEP apart.
template <typename Tile, int LINES>
constexpr int OWN_RUNS = LINES * Tile::ROW / RUN_BYTES / TILE_BLOCK;

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

// A run's copy is under way after this, or its ones are there; its quarter.
template <typename T, typename Tile, int LINES, typename Factor, typename Line, typename Term>
__device__ __forceinline__ int ask_run(const Factor& factor, const Line& line, const Term& term, bool inside,
                                       unsigned char* to, int stage, int slot)
{
    if (is_ones(line)) {
        unsigned words[4] = {0, 0, 0, 0};
        if (inside) set_ones<T>(factor.terms_lie_together, words);
        *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
        return 0;
    }
    int quarter = 0;
    const T* const place = inside ? place_of(factor, line, term, &quarter) : nullptr;
    const bool there = place != nullptr;
    const T* const from = there ? place : any_place(factor);
    copy_run(shared_address(to), from, there);
    if (has_winners(factor))
        copy_few<RUN_BYTES / sizeof(T)>(shared_address(place_of_winners<Tile, LINES>(stage, slot)),
                                        winners_of(factor, from), there);
    return quarter;
}

// Asks for this thread's runs of a stage: the terms `first` up to below `to`.
template <typename T, typename Tile, int LINES, typename Factor, typename Line, int COUNT>
__device__ __forceinline__ void ask(const Factor& factor, Asked<Line, COUNT>& asked, int stage, unsigned char* part,
                                    int first, int to)
{
    constexpr bool TOGETHER = TERMS_TOGETHER<Factor>;
    using Lies = Layout<T, Tile, LINES, TOGETHER>;
    const int row = static_cast<int>(threadIdx.x) / Lies::RUNS, run = static_cast<int>(threadIdx.x) % Lies::RUNS;
    unsigned quarters = 0;
#pragma unroll
    for (int s = 0; s < OWN_RUNS<Tile, LINES>; ++s) {
        const int own = row + s * STEP<Lies>;
        const int term = first + Lies::term_in(own, run);
        const int quarter =
            ask_run<T, Tile, LINES>(factor, asked.line[TOGETHER ? s : 0], kept_term(factor, term), term < to,
                                    part + Lies::place_of_run(own, run), stage, s);
        quarters |= static_cast<unsigned>(quarter) << (2 * s);
    }
    asked.quarters = asked.quarters << QUARTER_BITS<Tile, LINES> | quarters;
}

// Of this thread's runs of a stage, asked for `ago` stages before the last one, only what has won stays.
template <typename T, typename Tile, int LINES, typename Factor, typename Line, int COUNT>
__device__ __forceinline__ void keep_own_winners(const Factor& factor, const Asked<Line, COUNT>& asked, int stage,
                                                 unsigned char* part, int ago)
{
    using Lies = Layout<T, Tile, LINES, TERMS_TOGETHER<Factor>>;
    if (!has_winners(factor)) return;
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

// ---- from shared memory to the tensor cores

// A lane's words of 32 lines, of 8 words of terms: with g = lane / 4 and t = lane % 4, word t (0) and t + 4 (1) of the
// lines 4 g + i; where half types' lines lie together, of the lines 8 i + g.
struct Fragment {
    unsigned word[2][4];
};

// Where a lane begins to read, of the lines from 32 * group on.
template <typename T, typename Tile, int LINES, bool TOGETHER>
__device__ __forceinline__ int own_place(int group)
{
    using Lies = Layout<T, Tile, LINES, TOGETHER>;
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    if (TOGETHER) return Lies::place_of_run(32 * group + lane / 8 % 2 * 8 + lane % 8, lane / 16);
    if (sizeof(T) == 2) return Lies::place_of_run(lane / 16 * 8 + lane % 8, 4 * group + lane / 8 % 2);
    return Lies::place_of_run(lane % 4, 8 * group + lane / 4);
}

// And where it goes on: for the words of the step-th 8 of a stage, of the strip-th 32 lines from `own` on, which come in
// two parts. (The last bits of a place are a run's number, crossed with the row's: crossed with more they are another
// run's.)
template <typename T, typename Tile, int LINES, bool TOGETHER>
__device__ __forceinline__ int place_to_read(int own, int strip, int step, int part)
{
    constexpr int ROW = Layout<T, Tile, LINES, TOGETHER>::RUNS * RUN_BYTES;
    if (TOGETHER) return (own ^ 2 * step * RUN_BYTES) + (32 * strip + 16 * part) * ROW;
    if (sizeof(T) == 2) return (own ^ (4 * strip + 2 * part) * RUN_BYTES) + 16 * step * ROW;
    return own + 8 * strip * RUN_BYTES + (8 * step + 4 * part) * ROW;
}

template <typename T, typename Tile, int LINES, bool TOGETHER>
__device__ __forceinline__ void read_fragment(Fragment& fragment, const unsigned char* part, int own, int strip, int step)
{
    unsigned(&w)[2][4] = fragment.word;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        const unsigned char* const from = part + place_to_read<T, Tile, LINES, TOGETHER>(own, strip, step, k);
        if constexpr (TOGETHER)
            load_matrices(w[0][2 * k], w[0][2 * k + 1], w[1][2 * k], w[1][2 * k + 1], shared_address(from));
        else if constexpr (sizeof(T) == 2)
            load_transposed(w[0][2 * k], w[0][2 * k + 1], w[1][2 * k], w[1][2 * k + 1], shared_address(from));
        else
            load_words(from, w[k]);
    }
}

// A thread's sums: STRIPS times four rows of eight columns. Number n of the columns is at [j][e] of the j-th 8 columns'
// product, j = n % 4 and e = n / 4; see put_columns.
template <typename Tile>
struct TensorSums {
    static constexpr int STRIPS = Tile::HEIGHT * Tile::WIDTH / (TILE_BLOCK / WARP) / (32 * 32);
    float sum[STRIPS][OWN][8];
};

template <typename Tile>
struct Fragments {
    Fragment rows[TensorSums<Tile>::STRIPS], columns;
};

__device__ __forceinline__ void round_to_tf32(Fragment& fragment)
{
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < 4; ++i) fragment.word[h][i] = to_tf32(fragment.word[h][i]);
}

template <typename T, typename Tile>
__device__ __forceinline__ void multiply_words(TensorSums<Tile>& sums, Fragments<Tile>& of)
{
    if constexpr (sizeof(T) == 4) round_to_tf32(of.columns);
    const auto& y = of.columns.word;
#pragma unroll
    for (int strip = 0; strip < sums.STRIPS; ++strip) {
        if constexpr (sizeof(T) == 4) round_to_tf32(of.rows[strip]);
        const auto& x = of.rows[strip].word;
        float(&s)[OWN][8] = sums.sum[strip];
#pragma unroll
        for (int m = 0; m < OWN; m += 2)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                multiply_fragments(static_cast<const T*>(nullptr), s[m][j], s[m][4 + j], s[m + 1][j], s[m + 1][4 + j],
                                   x[0][m], x[0][m + 1], x[1][m], x[1][m + 1], y[0][j], y[1][j]);
    }
}

// Four lanes have columns 8 j + 2 t and the next, j = 0..3: afterwards 8 t up to 8 t + 7. The transpose of four by four
// pairs, by exchanging two by two pairs and then single ones.
__device__ __forceinline__ void gather_columns(float (&sum)[8])
{
    const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j & bit) continue;
#pragma unroll
            for (int e = 0; e < 8; e += 4) {
                float& low = sum[e + j];
                float& high = sum[e + j + bit];
                const float got = __shfl_xor_sync(0xffffffffu, t & bit ? low : high, bit);
                (t & bit ? low : high) = got;
            }
        }
    float ordered[8];
#pragma unroll
    for (int n = 0; n < 8; ++n) ordered[n] = sum[n % 2 * 4 + n / 2];
#pragma unroll
    for (int n = 0; n < 8; ++n) sum[n] = ordered[n];
}

// ---- a block's share

template <typename T, typename Tile, typename Left, typename Right>
__device__ __forceinline__ void work_out_by_cores(const Share& share, const Left& left, const Right& right,
                                                  const Target<T, float>& target, int from, int to)
{
    constexpr int HEIGHT = Tile::HEIGHT, WIDTH = Tile::WIDTH, STAGES = Tile::STAGES;
    constexpr int TERMS = Tile::ROW / sizeof(T), STEPS = Tile::ROW / 32;
    constexpr bool ROWS_TOGETHER = TERMS_TOGETHER<Left>;
    constexpr bool COLUMNS_TOGETHER = TERMS_TOGETHER<Right>;
    const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    TensorSums<Tile> sums = {};
    const int group = warp / (WIDTH / 32) * sums.STRIPS;
    const int rows_at = own_place<T, Tile, HEIGHT, ROWS_TOGETHER>(group);
    const int columns_at = own_place<T, Tile, WIDTH, COLUMNS_TOGETHER>(warp % (WIDTH / 32));
    auto rows = begin_asking<T, Tile, HEIGHT>(left, share.row * HEIGHT);
    auto columns = begin_asking<T, Tile, WIDTH>(right, share.col * WIDTH);

    const auto ask_for = [&](int stage, int first) {
        unsigned char* const part = pipeline_memory() + stage * STAGE_BYTES<Tile>;
        ask<T, Tile, HEIGHT>(left, rows, stage, part, first, to);
        ask<T, Tile, WIDTH>(right, columns, stage, part + HEIGHT * Tile::ROW, first, to);
        close_group();
    };
    const auto await = [&](int stage) {
        unsigned char* const part = pipeline_memory() + stage * STAGE_BYTES<Tile>;
        wait_for_groups<STAGES - 2>();
        keep_own_winners<T, Tile, HEIGHT>(left, rows, stage, part, STAGES - 2);
        keep_own_winners<T, Tile, WIDTH>(right, columns, stage, part + HEIGHT * Tile::ROW, STAGES - 2);
        __syncthreads();
    };
    const auto read = [&](Fragments<Tile>& of, int stage, int step) {
        const unsigned char* const part = pipeline_memory() + stage * STAGE_BYTES<Tile>;
#pragma unroll
        for (int strip = 0; strip < sums.STRIPS; ++strip)
            read_fragment<T, Tile, HEIGHT, ROWS_TOGETHER>(of.rows[strip], part, rows_at, strip, step);
        read_fragment<T, Tile, WIDTH, COLUMNS_TOGETHER>(of.columns, part + HEIGHT * Tile::ROW, columns_at, 0, step);
    };

    int next = from;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage, next += TERMS) ask_for(stage, next);
    await(0);
    Fragments<Tile> fragments[2];
    read(fragments[0], 0, 0);
    int stage = 0, free = STAGES - 1;
#pragma unroll 1
    for (int start = from; start < to; start += TERMS, next += TERMS) {
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step == STEPS - 1) {  // all words of this stage are read
                stage = stage + 1 == STAGES ? 0 : stage + 1;
                await(stage);
            }
            read(fragments[(step + 1) % 2], stage, (step + 1) % STEPS);
            if (step == 0) {
                ask_for(free, next);
                free = free + 1 == STAGES ? 0 : free + 1;
            }
            multiply_words<T>(sums, fragments[step % 2]);
        }
    }
    wait_for_groups<0>();

    constexpr bool GATHER = !COLUMNS_TOGETHER && sizeof(T) == 2, APART = !ROWS_TOGETHER && sizeof(T) == 2;
    const int row = share.row * HEIGHT + 32 * group + lane / 4 * (APART ? 1 : OWN);
    const int col = share.col * WIDTH + warp % (WIDTH / 32) * 32 + lane % 4 * 8;
#pragma unroll
    for (int strip = 0; strip < sums.STRIPS; ++strip) {
        if constexpr (GATHER)
#pragma unroll
            for (int i = 0; i < OWN; ++i) gather_columns(sums.sum[strip][i]);
        put(target, share, row + 32 * strip, col, sums.sum[strip], APART ? 8 : 1);
    }
}
