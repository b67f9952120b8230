// Tiles of a product by tensor cores (from sm_80 on): float is rounded to TF32, to the nearest, half types go as they
// are; sums are float32. A warp works out STRIPS times 32 rows by 32 columns.
//
// The factors come by stages (stages.cuh). One of them is multiplied while the others are on their way: a thread waits for
// its own copies STAGES - 1 stages after it has asked for them. One barrier a stage says that all runs of the next one are
// there, and that the last one can be overwritten. What the tensor cores take of the next 8 words is read while they
// multiply these.

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
    auto& w = fragment.word;
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
__device__ __forceinline__ void work_out_by_cores(const Share& share, const Left& given, const Right& right,
                                                  const Target<T, float>& target, int from, int to)
{
    constexpr int HEIGHT = Tile::HEIGHT, WIDTH = Tile::WIDTH, STAGES = Tile::STAGES;
    constexpr int TERMS = Tile::ROW / sizeof(T), STEPS = Tile::ROW / 32;
    constexpr bool ROWS_TOGETHER = TERMS_TOGETHER<Left>;
    constexpr bool COLUMNS_TOGETHER = TERMS_TOGETHER<Right>;
    const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;
    TensorSums<Tile> sums = {};
    const int group = warp / (WIDTH / 32) * sums.STRIPS, across = warp % (WIDTH / 32);
    const auto left = noting(given, from);
    begin_notes(left);
    const int rows_at = own_place<T, Tile, HEIGHT, ROWS_TOGETHER>(group);
    const int columns_at = own_place<T, Tile, WIDTH, COLUMNS_TOGETHER>(across);
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

#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage) {
        unsigned char* const part = pipeline_memory() + stage * STAGE_BYTES<Tile>;
        place_ones<T, Tile, HEIGHT>(left, rows, part);
        place_ones<T, Tile, WIDTH>(right, columns, part + HEIGHT * Tile::ROW);
    }
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
                go_on_noting(left, next);
                ask_for(free, next);
                free = free + 1 == STAGES ? 0 : free + 1;
            }
            multiply_words<T>(sums, fragments[step % 2]);
        }
    }
    wait_for_groups<0>();

    constexpr bool GATHER = !COLUMNS_TOGETHER && sizeof(T) == 2, APART = !ROWS_TOGETHER && sizeof(T) == 2;
    const int row = share.row * HEIGHT + 32 * group + lane / 4 * (APART ? 1 : OWN);
    const int col = share.col * WIDTH + 32 * across + lane % 4 * 8;
#pragma unroll
    for (int strip = 0; strip < sums.STRIPS; ++strip) {
        if constexpr (GATHER)
#pragma unroll
            for (int i = 0; i < OWN; ++i) gather_columns(sums.sum[strip][i]);
        put(target, share, row + 32 * strip, col, sums.sum[strip], APART ? 8 : 1);
    }
}
