// Larger tiles of a product than those of tile.cuh: by FFMA, a thread 8 x 8 numbers (Tall, Large), or by tensor cores, a warp
// 32 columns (Tensor, TensorLarge; from sm_80 on).
//
// They take factors whose numbers lie together in whole runs of 16 bytes, terms of a line or lines of a term, aligned:
// run_at(factor, line, term, words) reads one. float is rounded to TF32 for the tensor cores, to the nearest; half types
// go as they are, two terms a word. Sums are float32.
//
// Shared memory holds TERM_WORDS words of a factor's terms by its lines, twice: one half is multiplied while the other is
// filled. Line l of word w lies at l ^ 8 (w / 4 % 4) in row w, whose length is 8 words mod 32. So neither runs of terms
// (down a column, from 4 neighbouring words by 8 lines a warp) nor of lines, nor the fours of lines that are read back,
// meet in a bank.

#define TERM_WORDS 16
#define SKEW 8
#define WARP 32

struct Tall {
    static constexpr int HEIGHT = 256, WIDTH = 64;
    static constexpr bool LARGE = true, TENSOR = false;
};
struct Large {
    static constexpr int HEIGHT = 128, WIDTH = 128;
    static constexpr bool LARGE = true, TENSOR = false;
};
struct Tensor {
    static constexpr int HEIGHT = 128, WIDTH = 64;
    static constexpr bool LARGE = true, TENSOR = true;
};
struct TensorLarge {
    static constexpr int HEIGHT = 128, WIDTH = 128;
    static constexpr bool LARGE = true, TENSOR = true;
};

__device__ __forceinline__ int swizzled(int line, int word)
{
    return line ^ (8 * (word / 4 % 4));
}

// ---- from memory to shared memory

// Four words that a thread moves: `word`..`word + 3` of `line`, or `word` of `line`..`line + 3`.
struct Run {
    int line, word;
};

template <int LINES>
__device__ __forceinline__ Run run_of(int slot, bool terms_lie_together)
{
    const int number = static_cast<int>(threadIdx.x) + slot * TILE_BLOCK;
    if (terms_lie_together) return {number / (TERM_WORDS / 4), number % (TERM_WORDS / 4) * 4};
    return {number % (LINES / 4) * 4, number / (LINES / 4)};
}

// This thread's runs of the terms `first` up to below `to`, as they come; half types whose lines lie together: four
// lines of a term, then four of the next.
template <typename T, int LINES, int COUNT, typename Factor>
__device__ __forceinline__ void fetch_runs(const Factor& factor, int first_line, int first, int to,
                                           unsigned (&runs)[COUNT][4])
{
    constexpr int TERMS = 4 / sizeof(T);  // a word
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
        const Run run = run_of<LINES>(s, factor.terms_lie_together);
        const int line = first_line + run.line, term = first + run.word * TERMS;
        unsigned words[4] = {0, 0, 0, 0};
        if (factor.terms_lie_together) {
            if (term < to) run_at(factor, line, term, words);
        } else {
#pragma unroll
            for (int t = 0; t < TERMS; ++t) {
                unsigned four[4 / TERMS] = {};
                if (term + t < to) run_at(factor, line, term + t, four);
#pragma unroll
                for (int i = 0; i < 4 / TERMS; ++i) words[t * (4 / TERMS) + i] = four[i];
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) runs[s][i] = words[i];
    }
}

// The i-th of four neighbouring lines, a word of two terms, from what fetch_runs has.
__device__ __forceinline__ unsigned both_terms(const unsigned (&run)[4], int i)
{
    const unsigned now = run[i / 2], next = run[2 + i / 2];
    return i % 2 ? now >> 16 | (next & 0xffff0000u) : (now & 0xffffu) | next << 16;
}

template <typename T, bool TENSOR, int LINES, int COUNT>
__device__ __forceinline__ void store_runs(const unsigned (&runs)[COUNT][4], bool terms_lie_together,
                                           unsigned (&tile)[TERM_WORDS][LINES + SKEW])
{
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
        const Run run = run_of<LINES>(s, terms_lie_together);
        const int column = swizzled(run.line, run.word);
        Pack<unsigned, 4> words;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words.item[i] = sizeof(T) == 2 && !terms_lie_together ? both_terms(runs[s], i) : runs[s][i];
            if constexpr (TENSOR && sizeof(T) == 4) words.item[i] = to_tf32(words.item[i]);
        }
        if (!terms_lie_together) {
            *reinterpret_cast<Pack<unsigned, 4>*>(&tile[run.word][column]) = words;
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) tile[run.word + i][column] = words.item[i];
        }
    }
}

template <int LENGTH>
__device__ __forceinline__ Pack<unsigned, 4> four_lines(const unsigned (&tile)[TERM_WORDS][LENGTH], int line, int word)
{
    return *reinterpret_cast<const Pack<unsigned, 4>*>(&tile[word][swizzled(line, word)]);
}

// ---- the products of what is in shared memory

// A thread's sums: in a tile for tensor cores STRIPS times four rows of eight columns (a warp has STRIPS times 32 rows
// and 32 columns), else 2 x 2 fours of rows of four columns.
template <typename Tile, bool TENSOR = Tile::TENSOR>
struct Sums;

template <typename Tile>
struct Sums<Tile, true> {
    static constexpr int STRIPS = Tile::HEIGHT * Tile::WIDTH / (TILE_BLOCK / WARP) / (32 * 32), ACROSS = 1, COLS = 8;
    float sum[STRIPS][ACROSS][OWN][COLS];
};

template <typename Tile>
struct Sums<Tile, false> {
    static constexpr int STRIPS = 2, ACROSS = 2, COLS = 4;
    float sum[STRIPS][ACROSS][OWN][COLS];
};

// The first row and column of a part of a thread's sums. By tensor cores the thread with g = lane / 4 and t = lane % 4
// reads four neighbouring lines 4 g .. 4 g + 3 of each factor at once, words t and t + 4. So the lines of a product are
// not those of the tile: row g of the m-th 16 rows is line 4 g + 2 m, row g + 8 the one after; column g of the j-th 8
// columns is line 4 g + j. The sums of a thread then are those of rows 4 g .. 4 g + 3 (a window of pooling) and columns
// 8 t .. 8 t + 7.
template <typename Tile>
__device__ __forceinline__ int row_of(const Sums<Tile, true>& sums, int strip)
{
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    return warp / (Tile::WIDTH / 32) * (32 * sums.STRIPS) + 32 * strip + static_cast<int>(threadIdx.x) % WARP / 4 * 4;
}

template <typename Tile>
__device__ __forceinline__ int col_of(const Sums<Tile, true>& sums, int)
{
    const int warp = static_cast<int>(threadIdx.x) / WARP;
    return warp % (Tile::WIDTH / 32) * 32 + static_cast<int>(threadIdx.x) % 4 * sums.COLS;
}

template <typename Tile>
__device__ __forceinline__ int row_of(const Sums<Tile, false>& sums, int strip)
{
    return strip * (Tile::HEIGHT / sums.STRIPS) + static_cast<int>(threadIdx.x) / (Tile::WIDTH / 8) * OWN;
}

template <typename Tile>
__device__ __forceinline__ int col_of(const Sums<Tile, false>& sums, int strip)
{
    return strip * (Tile::WIDTH / sums.ACROSS) + static_cast<int>(threadIdx.x) % (Tile::WIDTH / 8) * sums.COLS;
}

// The products of what shared memory holds.
template <typename T, typename Tile>
__device__ __forceinline__ void add(Sums<Tile, true>& sums, const unsigned (&a)[TERM_WORDS][Tile::HEIGHT + SKEW],
                                    const unsigned (&b)[TERM_WORDS][Tile::WIDTH + SKEW])
{
    const int t = static_cast<int>(threadIdx.x) % 4;
    const int first = col_of(sums, 0) - t * sums.COLS;  // of the warp
    const int line = first + static_cast<int>(threadIdx.x) % WARP / 4 * 4;
#pragma unroll
    for (int word = 0; word < TERM_WORDS; word += 8) {
        const Pack<unsigned, 4> y0 = four_lines(b, line, word + t);
        const Pack<unsigned, 4> y1 = four_lines(b, line, word + t + 4);
#pragma unroll
        for (int strip = 0; strip < sums.STRIPS; ++strip) {
            const Pack<unsigned, 4> x0 = four_lines(a, row_of(sums, strip), word + t);
            const Pack<unsigned, 4> x1 = four_lines(a, row_of(sums, strip), word + t + 4);
            float(&s)[OWN][8] = sums.sum[strip][0];
#pragma unroll
            for (int m = 0; m < OWN; m += 2)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    multiply_fragments(static_cast<const T*>(nullptr), s[m][j], s[m][4 + j], s[m + 1][j], s[m + 1][4 + j],
                                       x0.item[m], x0.item[m + 1], x1.item[m], x1.item[m + 1], y0.item[j], y1.item[j]);
        }
    }
}

template <typename T, typename Tile>
__device__ __forceinline__ void add(Sums<Tile, false>& sums, const unsigned (&a)[TERM_WORDS][Tile::HEIGHT + SKEW],
                                    const unsigned (&b)[TERM_WORDS][Tile::WIDTH + SKEW])
{
#pragma unroll
    for (int k = 0; k < TERM_WORDS; ++k) {
        const Pack<unsigned, 4> x[2] = {four_lines(a, row_of(sums, 0), k), four_lines(a, row_of(sums, 1), k)};
        const Pack<unsigned, 4> y[2] = {four_lines(b, col_of(sums, 0), k), four_lines(b, col_of(sums, 1), k)};
#pragma unroll
        for (int i = 0; i < 2 * OWN; ++i)
#pragma unroll
            for (int j = 0; j < 2 * OWN; ++j)
                sums.sum[i / OWN][j / OWN][i % OWN][j % OWN] +=
                    __uint_as_float(x[i / OWN].item[i % OWN]) * __uint_as_float(y[j / OWN].item[j % OWN]);
    }
}

// As factor_in_shared_memory, both halves of it.
template <int WHICH, typename Half>
__device__ __forceinline__ auto& both_halves()
{
    __shared__ __align__(16) Half shared[2];
    return shared;
}

// The sums over from <= k < to, and where they go.
template <typename T, typename Tile, typename Left, typename Right>
__device__ __forceinline__ void work_out_large(const Share& share, const Left& left, const Right& right,
                                               const Target<T, float>& target, int from, int to)
{
    constexpr int TERMS = TERM_WORDS * (Tile::TENSOR ? 4 / sizeof(T) : 1);
    using ByHeight = unsigned[TERM_WORDS][Tile::HEIGHT + SKEW];
    using ByWidth = unsigned[TERM_WORDS][Tile::WIDTH + SKEW];
    ByHeight(&a)[2] = both_halves<0, ByHeight>();
    ByWidth(&b)[2] = both_halves<1, ByWidth>();
    const int first_row = share.row * Tile::HEIGHT, first_col = share.col * Tile::WIDTH;
    unsigned next_a[Tile::HEIGHT * TERM_WORDS / 4 / TILE_BLOCK][4];
    unsigned next_b[Tile::WIDTH * TERM_WORDS / 4 / TILE_BLOCK][4];
    Sums<Tile> sums = {};

    fetch_runs<T, Tile::HEIGHT>(left, first_row, from, to, next_a);
    fetch_runs<T, Tile::WIDTH>(right, first_col, from, to, next_b);
    int filled = 0;
    for (int start = from; start < to; start += TERMS) {
        // whoever still multiplies has the other half
        store_runs<T, Tile::TENSOR, Tile::HEIGHT>(next_a, left.terms_lie_together, a[filled]);
        store_runs<T, Tile::TENSOR, Tile::WIDTH>(next_b, right.terms_lie_together, b[filled]);
        __syncthreads();
        fetch_runs<T, Tile::HEIGHT>(left, first_row, start + TERMS, to, next_a);
        fetch_runs<T, Tile::WIDTH>(right, first_col, start + TERMS, to, next_b);
        add<T>(sums, a[filled], b[filled]);
        filled ^= 1;
    }
#pragma unroll
    for (int i = 0; i < sums.STRIPS; ++i)
#pragma unroll
        for (int j = 0; j < sums.ACROSS; ++j)
            put(target, share, first_row + row_of(sums, i), first_col + col_of(sums, j), sums.sum[i][j]);
}

// What is done with a tile when it has been put where it belongs: an overload of follow(what, target, share).
struct Nothing {};

template <typename T, typename Acc>
__device__ __forceinline__ void follow(const Nothing&, const Target<T, Acc>&, const Share&)
{
}

// A block's share of left * right; a part is `span` of the `terms`.
template <typename T, typename Acc, typename Tile, typename Left, typename Right, typename After = Nothing>
__device__ __forceinline__ void work_out(const Share& share, const Left& left, const Right& right,
                                         const Target<T, Acc>& target, int terms, int span,
                                         const After& after = After())
{
    const int from = share.part * span;
    const int to = terms - from < span ? terms : from + span;
    if constexpr (Tile::LARGE) {
        work_out_large<T, Tile>(share, left, right, target, from, to);
    } else {
        const int first_row = share.row * Tile::HEIGHT, first_col = share.col * Tile::WIDTH;
        Acc sum[OWN][OWN];
        multiply<Acc, Tile>(left, right, first_row, first_col, from, to, sum);
        const int row = OWN * (static_cast<int>(threadIdx.x) / (Tile::WIDTH / OWN));
        const int col = OWN * (static_cast<int>(threadIdx.x) % (Tile::WIDTH / OWN));
        put(target, share, first_row + row, first_col + col, sum);
    }
    follow(after, target, share);
}
