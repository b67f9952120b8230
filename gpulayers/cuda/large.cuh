// Larger tiles of a product than those of tile.cuh, of float32 by FFMA, a thread 8 x 8 numbers (Tall, Large); and which
// tile is worked out how.
//
// They take factors by runs (tile.cuh). Shared memory holds DEEP terms of a factor by its lines, twice: one half is
// multiplied while the other is filled. Line l of term k lies at l ^ 8 (k / 4 % 4) in row k, whose length is 8 words mod
// 32. So neither runs of terms (down a column, from 4 neighbouring terms by 8 lines a warp) nor of lines, nor the fours of
// lines that are read back, meet in a bank.

#define DEEP 16
#define SKEW 8

struct Tall {
    static constexpr int HEIGHT = 256, WIDTH = 64;
    static constexpr bool LARGE = true, TENSOR = false;
};
struct Large {
    static constexpr int HEIGHT = 128, WIDTH = 128;
    static constexpr bool LARGE = true, TENSOR = false;
};

__device__ __forceinline__ int swizzled(int line, int term)
{
    return line ^ (8 * (term / 4 % 4));
}

// ---- from memory to shared memory

// Four numbers that a thread moves: the terms `term`..`term + 3` of `line`, or `term` of `line`..`line + 3`.
struct Run {
    int line, term;
};

template <int LINES>
__device__ __forceinline__ Run run_of(int slot, bool terms_lie_together)
{
    const int number = static_cast<int>(threadIdx.x) + slot * TILE_BLOCK;
    if (terms_lie_together) return {number / (DEEP / 4), number % (DEEP / 4) * 4};
    return {number % (LINES / 4) * 4, number / (LINES / 4)};
}

// A factor's run from (line, term) on; the words are zeros before.
template <typename T, typename Factor>
__device__ __forceinline__ void run_at(const Factor& factor, int line, int term, unsigned (&words)[4])
{
    const auto own = line_of(factor, line);
    if (is_ones(own)) {
        set_ones<T>(factor.terms_lie_together, words);
        return;
    }
    int quarter = 0;
    const T* const place = place_of(factor, own, term_of(factor, term), &quarter);
    if (!place) return;
    load_words(place, words);
    if (!has_winners(factor)) return;
    unsigned winners[1];
    load_words(winners_of(factor, place), winners);
    keep_winners<T>(words, winners, static_cast<unsigned>(quarter));
}

// A thread's share of the runs of so many lines.
template <int LINES>
using RunsOf = unsigned[LINES * DEEP / 4 / TILE_BLOCK][4];

// This thread's runs of the terms `first` up to below `to`, as they come.
template <typename T, int LINES, int COUNT, typename Factor>
__device__ __forceinline__ void fetch_runs(const Factor& factor, int first_line, int first, int to,
                                           unsigned (&runs)[COUNT][4])
{
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
        const Run run = run_of<LINES>(s, factor.terms_lie_together);
        unsigned words[4] = {};
        if (first + run.term < to) run_at<T>(factor, first_line + run.line, first + run.term, words);
#pragma unroll
        for (int i = 0; i < 4; ++i) runs[s][i] = words[i];
    }
}

template <int LINES, int COUNT>
__device__ __forceinline__ void store_runs(const unsigned (&runs)[COUNT][4], bool terms_lie_together,
                                           unsigned (&tile)[DEEP][LINES + SKEW])
{
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
        const Run run = run_of<LINES>(s, terms_lie_together);
        const int column = swizzled(run.line, run.term);
        Pack<unsigned, 4> words;
#pragma unroll
        for (int i = 0; i < 4; ++i) words.item[i] = runs[s][i];
        if (!terms_lie_together) {
            *reinterpret_cast<Pack<unsigned, 4>*>(&tile[run.term][column]) = words;
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) tile[run.term + i][column] = words.item[i];
        }
    }
}

template <int LENGTH>
__device__ __forceinline__ Pack<unsigned, 4> four_lines(const unsigned (&tile)[DEEP][LENGTH], int line, int term)
{
    return *reinterpret_cast<const Pack<unsigned, 4>*>(&tile[term][swizzled(line, term)]);
}

// ---- the products of what is in shared memory

// The first row and column of a part of a thread's sums, which are 2 x 2 fours of rows of four columns.
template <typename Tile>
__device__ __forceinline__ int row_of(int part)
{
    return part * (Tile::HEIGHT / 2) + static_cast<int>(threadIdx.x) / (Tile::WIDTH / 8) * OWN;
}

template <typename Tile>
__device__ __forceinline__ int col_of(int part)
{
    return part * (Tile::WIDTH / 2) + static_cast<int>(threadIdx.x) % (Tile::WIDTH / 8) * OWN;
}

template <typename Tile>
__device__ __forceinline__ void add(float (&sum)[2][2][OWN][OWN], const unsigned (&a)[DEEP][Tile::HEIGHT + SKEW],
                                    const unsigned (&b)[DEEP][Tile::WIDTH + SKEW])
{
#pragma unroll
    for (int k = 0; k < DEEP; ++k) {
        const Pack<unsigned, 4> x[2] = {four_lines(a, row_of<Tile>(0), k), four_lines(a, row_of<Tile>(1), k)};
        const Pack<unsigned, 4> y[2] = {four_lines(b, col_of<Tile>(0), k), four_lines(b, col_of<Tile>(1), k)};
#pragma unroll
        for (int i = 0; i < 2 * OWN; ++i)
#pragma unroll
            for (int j = 0; j < 2 * OWN; ++j)
                sum[i / OWN][j / OWN][i % OWN][j % OWN] +=
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
    using ByHeight = unsigned[DEEP][Tile::HEIGHT + SKEW];
    using ByWidth = unsigned[DEEP][Tile::WIDTH + SKEW];
    ByHeight(&a)[2] = both_halves<0, ByHeight>();
    ByWidth(&b)[2] = both_halves<1, ByWidth>();
    const int first_row = share.row * Tile::HEIGHT, first_col = share.col * Tile::WIDTH;
    RunsOf<Tile::HEIGHT> next_a;
    RunsOf<Tile::WIDTH> next_b;
    float sum[2][2][OWN][OWN] = {};

    fetch_runs<T, Tile::HEIGHT>(left, first_row, from, to, next_a);
    fetch_runs<T, Tile::WIDTH>(right, first_col, from, to, next_b);
    int filled = 0;
    for (int start = from; start < to; start += DEEP) {
        // whoever still multiplies has the other half
        store_runs<Tile::HEIGHT>(next_a, left.terms_lie_together, a[filled]);
        store_runs<Tile::WIDTH>(next_b, right.terms_lie_together, b[filled]);
        __syncthreads();
        fetch_runs<T, Tile::HEIGHT>(left, first_row, start + DEEP, to, next_a);
        fetch_runs<T, Tile::WIDTH>(right, first_col, start + DEEP, to, next_b);
        add<Tile>(sum, a[filled], b[filled]);
        filled ^= 1;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j)
            put(target, share, first_row + row_of<Tile>(i), first_col + col_of<Tile>(j), sum[i][j]);
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
    if constexpr (BY_GROUPS<Tile>) {
        work_out_by_groups<T, Tile>(share, left, right, target, from, to);
    } else if constexpr (Tile::TENSOR) {
        work_out_by_cores<T, Tile>(share, left, right, target, from, to);
    } else if constexpr (Tile::LARGE) {
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
