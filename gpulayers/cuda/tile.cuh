// The product of two matrices, a tile of it by a block: for gemm.cu and conv.cu.
//
// A block of 256 threads works out HEIGHT x WIDTH numbers, a thread OWN x OWN of them in registers. The factors come
// through shared memory, DEPTH terms of the sums at a time; while those are multiplied the next ones are on their way.
// The order of the terms is fixed: bitwise repeatable. What a factor is (a matrix, the windows of an image, a gradient)
// is said by an overload of value_at(factor, line, term), which reads nothing beyond the last line. Larger tiles are
// worked out by large.cuh, those for tensor cores by pipeline.cuh; they take factors by runs of 16 bytes.

#define TILE_BLOCK 256
#define OWN 4
// Keeps rows of shared memory 16-byte aligned and columns off a single bank.
#define PADDING 4

struct Wide {
    static constexpr int HEIGHT = 64, WIDTH = 64, DEPTH = 16;
    static constexpr bool LARGE = false, TENSOR = false;
};
struct Narrow {
    static constexpr int HEIGHT = 256, WIDTH = 16, DEPTH = 8;
    static constexpr bool LARGE = false, TENSOR = false;
};

// Which (term, line) of a factor's tile of LINES x DEPTH a thread fetches as its slot-th: neighbouring threads take
// neighbouring terms of a line, or the same term of neighbouring lines, as the factor lies in memory. A tile of fewer
// numbers than threads leaves some without: theirs lie beyond it.
struct Slot {
    int term, line;
};

template <int LINES, int DEPTH>
__device__ __forceinline__ Slot slot_of(int slot, bool terms_lie_together)
{
    const int number = static_cast<int>(threadIdx.x) + slot * TILE_BLOCK;
    if (terms_lie_together) return {number % DEPTH, number / DEPTH};
    return {number / LINES, number % LINES};
}

// The numbers of a tile that this thread fetches, from the terms `first` up to below `to`.
template <typename Acc, int LINES, int DEPTH, int COUNT, typename Factor>
__device__ __forceinline__ void fetch(const Factor& factor, int first_line, int first, int to, Acc (&next)[COUNT])
{
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
        const Slot slot = slot_of<LINES, DEPTH>(s, factor.terms_lie_together);
        const int term = first + slot.term;
        next[s] = term < to ? value_at(factor, first_line + slot.line, term) : static_cast<Acc>(0);
    }
}

template <typename Acc, int LINES, int DEPTH, int COUNT>
__device__ __forceinline__ void store(const Acc (&next)[COUNT], bool terms_lie_together,
                                      Acc (&tile)[DEPTH][LINES + PADDING])
{
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
        const Slot slot = slot_of<LINES, DEPTH>(s, terms_lie_together);
        if (slot.line < LINES && slot.term < DEPTH) tile[slot.term][slot.line] = next[s];
    }
}

// What of a factor is in shared memory, for the left (0) and the right one: there once, whatever products a kernel has.
template <typename Number, int WHICH, int DEPTH, int LINES>
__device__ __forceinline__ auto& factor_in_shared_memory()
{
    __shared__ __align__(16) Number shared[DEPTH][LINES];
    return shared;
}

// sum[i][j] = sum over from <= k < to of left(row + i, k) * right(k, col + j), row and col those of this thread.
template <typename Acc, typename Tile, typename Left, typename Right>
__device__ __forceinline__ void multiply(const Left& left, const Right& right, int first_row, int first_col, int from,
                                         int to, Acc (&sum)[OWN][OWN])
{
    constexpr int HEIGHT = Tile::HEIGHT, WIDTH = Tile::WIDTH, DEPTH = Tile::DEPTH;
    auto& a = factor_in_shared_memory<Acc, 0, DEPTH, HEIGHT + PADDING>();
    auto& b = factor_in_shared_memory<Acc, 1, DEPTH, WIDTH + PADDING>();
    const int row = OWN * (static_cast<int>(threadIdx.x) / (WIDTH / OWN));
    const int col = OWN * (static_cast<int>(threadIdx.x) % (WIDTH / OWN));
    Acc next_a[HEIGHT * DEPTH / TILE_BLOCK];
    Acc next_b[(WIDTH * DEPTH + TILE_BLOCK - 1) / TILE_BLOCK];

#pragma unroll
    for (int i = 0; i < OWN; ++i)
#pragma unroll
        for (int j = 0; j < OWN; ++j) sum[i][j] = static_cast<Acc>(0);

    // the first round only fetches
    for (int start = from - DEPTH; start < to; start += DEPTH) {
        if (start >= from) {
            __syncthreads();  // nobody reads the last terms any more
            store<Acc, HEIGHT, DEPTH>(next_a, left.terms_lie_together, a);
            store<Acc, WIDTH, DEPTH>(next_b, right.terms_lie_together, b);
            __syncthreads();
        }
        fetch<Acc, HEIGHT, DEPTH>(left, first_row, start + DEPTH, to, next_a);
        fetch<Acc, WIDTH, DEPTH>(right, first_col, start + DEPTH, to, next_b);
        if (start < from) continue;
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            Acc x[OWN];
            Acc y[OWN];
#pragma unroll
            for (int i = 0; i < OWN; ++i) x[i] = a[k][row + i];
#pragma unroll
            for (int j = 0; j < OWN; ++j) y[j] = b[k][col + j];
#pragma unroll
            for (int i = 0; i < OWN; ++i)
#pragma unroll
                for (int j = 0; j < OWN; ++j) sum[i][j] += x[i] * y[j];
        }
    }
}

// Which tile of a product a block works out, and which of the `parts` that the terms of its sums are cut into.
struct Share {
    int row, col, part, parts;
};

__device__ __forceinline__ Share share_of_block()
{
    return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z),
            static_cast<int>(gridDim.z)};
}

// Where a product goes: to `values`, or to `partial` (parts, rows, cols) where several blocks share the terms, or where
// it is wanted so (`in_parts`).
// `pooled`: four rows in a row are a 2 x 2 window; its maximum is kept, and in `winners` which of the four it was,
// 4 where ReLU made it zero. Of every `each` rows only the first `kept` are wanted, close together; 0: all rows.
template <typename T, typename Acc>
struct Target {
    T* values;
    Acc* partial;
    const T* bias;
    const T* mask;
    unsigned char* winners;
    int rows, cols;
    bool has_bias, has_mask, activated, pooled;
    const T* side;  // null, or what is added at last
    bool in_parts;
    int each, kept;
};

// Where a row is among those that are wanted, -1 if it is not.
template <typename T, typename Acc>
__device__ __forceinline__ int wanted_row(const Target<T, Acc>& target, int row)
{
    if (target.each == target.kept) return row;
    const int number = row / target.each;
    const int place = row - number * target.each;
    return place < target.kept ? number * target.kept + place : -1;
}

// What follows a sum: bias, activation, the slope of the one before, told by its output, and the side; a kernel has one
// activation (activation_functions.cuh).
template <typename T, typename Acc>
__device__ __forceinline__ Acc finished(const Target<T, Acc>& target, long long place, int col, Acc sum)
{
    if (target.has_bias) sum += static_cast<Acc>(target.bias[col]);
    if (target.activated) sum = fused_value(sum);
    if (target.has_mask) sum = fused_gradient(sum, static_cast<Acc>(target.mask[place]));
    if (target.side) sum += static_cast<Acc>(target.side[place]);
    return sum;
}

// Maximum of four rows: the first one wins ties, the first NaN everything.
template <typename Acc, int COLS>
__device__ __forceinline__ Acc maximum_of(const Acc (&sum)[OWN][COLS], int col, int* winner)
{
    Acc best = sum[0][col];
    *winner = 0;
#pragma unroll
    for (int i = 1; i < OWN; ++i)
        if (sum[i][col] > best || (sum[i][col] != sum[i][col] && best == best)) {
            best = sum[i][col];
            *winner = i;
        }
    return best;
}

// The first `count` of four numbers, by one instruction if all of them may be (`whole`).
template <typename T, typename Acc>
__device__ __forceinline__ void put_four(T* to, const Acc (&numbers)[OWN], int count, bool whole)
{
    if (whole) {
        Pack<T, OWN> pack;
#pragma unroll
        for (int j = 0; j < OWN; ++j) pack.item[j] = static_cast<T>(numbers[j]);
        *reinterpret_cast<Pack<T, OWN>*>(to) = pack;
        return;
    }
#pragma unroll
    for (int j = 0; j < OWN; ++j)
        if (j < count) to[j] = static_cast<T>(numbers[j]);
}

// A thread's sums of OWN rows, `row` and those `step` further each, and of the columns from `col` on, a multiple of OWN,
// go to where they belong. `pooled`: rows of a window, one after another.
template <typename T, typename Acc, int COLS>
__device__ __forceinline__ void put(const Target<T, Acc>& target, const Share& share, int row, int col,
                                    const Acc (&sum)[OWN][COLS], int step = 1)
{
    const bool fours = target.cols % OWN == 0 && lies_at<sizeof(T) * OWN>(target.values);
    const bool partial_fours = target.cols % OWN == 0 && lies_at<sizeof(Acc) * OWN>(target.partial);
    const bool shared = share.parts > 1 || target.in_parts;
#pragma unroll
    for (int first = 0; first < COLS; first += OWN) {
        const int count = target.cols - col - first;
        if (count <= 0) continue;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            if (row + i * step >= target.rows || (target.pooled && i > 0)) continue;
            const int line = target.pooled ? row / OWN : wanted_row(target, row + i * step);
            if (line < 0) continue;
            const long long place = static_cast<long long>(line) * target.cols + col + first;
            Acc out[OWN];
            int winners[OWN];
#pragma unroll
            for (int j = 0; j < OWN; ++j) {
                out[j] = target.pooled ? maximum_of(sum, first + j, winners + j) : sum[i][first + j];
                if (!shared && j < count) out[j] = finished(target, place + j, col + first + j, out[j]);
                if (FUSED == RELU && target.activated && target.pooled && !(out[j] > static_cast<Acc>(0)))
                    winners[j] = OWN;
            }
            if (shared) {
                const long long all = static_cast<long long>(wanted_row(target, target.rows - 1) + 1) * target.cols;
                put_four(target.partial + (share.part * all + place), out, count, partial_fours);
                continue;
            }
            put_four(target.values + place, out, count, fours);
            if (target.pooled) put_four(target.winners + place, winners, count, fours);
        }
    }
}

// Whether the terms of a factor's line lie together in memory or its lines, where that is known to the compiler; else
// it is a bool, true for the terms.
struct Terms {
    __device__ explicit constexpr Terms(bool = true) {}
    __device__ constexpr operator bool() const { return true; }
};
struct Lines {
    __device__ explicit constexpr Lines(bool = false) {}
    __device__ constexpr operator bool() const { return false; }
};

// A matrix as it lies: lines of terms. Line number `ones` is all ones (-1: there is none), so that a product's row of
// that number is the sum of the other factor's terms: the gradient of a bias.
template <typename T, typename Acc, typename Lying = bool>
struct Matrix {
    const T* values;
    int lines;
    long long by_line, by_term;
    int ones;
    Lying terms_lie_together;
};

template <typename T, typename Acc, typename Lying>
__device__ __forceinline__ Acc value_at(const Matrix<T, Acc, Lying>& m, int line, int term)
{
    if (line == m.ones) return static_cast<Acc>(1);
    if (line >= m.lines) return static_cast<Acc>(0);
    return static_cast<Acc>(m.values[line * m.by_line + term * m.by_term]);
}

// ---- factors by runs: what lies together from (line, term) on, 16 bytes of it, aligned
//
// What the place of a run has to do with its line is worked out by line_of(factor, line), with its term by
// term_of(factor, term), each once for many runs; place_of(factor, line, term, &quarter) has the place then, null for a
// run of zeros. A line of ones (is_ones) has no place. Where has_winners(factor), only what the `quarter` of a pooling
// window has won counts; the codes of a run's are at winners_of(factor, place).
//
// Who asks for runs of the same lines again and again keeps kept_line(factor, line), for which origin_of takes a
// kept_term(factor, first, step), of term first + step: the same places, with more of the work done beforehand where a
// factor has overloads of them.

// Where a run is. If it is not `there` it is zeros, and `from` may be anything.
template <typename T>
struct Origin {
    const T* from;
    bool there;
    int quarter = 0;
};

template <typename Line>
__device__ __forceinline__ bool is_ones(const Line&)
{
    return false;
}

template <typename Factor, typename T>
__device__ __forceinline__ const unsigned char* winners_of(const Factor&, const T*)
{
    return nullptr;
}

template <typename Factor>
__device__ __forceinline__ auto kept_line(const Factor& factor, int line)
{
    return line_of(factor, line);
}

template <typename Factor>
__device__ __forceinline__ auto kept_term(const Factor& factor, int first, int step)
{
    return term_of(factor, first + step);
}

template <typename T, typename Factor, typename Line, typename Term>
__device__ __forceinline__ Origin<T> origin_of(const Factor& factor, const Line& line, const Term& term)
{
    int quarter = 0;
    const T* const place = place_of(factor, line, term, &quarter);
    return {place, place != nullptr, quarter};
}

// Whether there are winners at all.
template <typename Factor>
__device__ __forceinline__ bool has_winners(const Factor&)
{
    return false;
}

// Of a run's numbers those whose winner is another one become zeros.
template <typename T, int COUNT>
__device__ __forceinline__ void keep_winners(unsigned (&words)[4], const unsigned (&winners)[COUNT], unsigned quarter)
{
    constexpr int PER_WORD = 4 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 4 * PER_WORD; ++i) {
        const unsigned mask = (PER_WORD == 1 ? 0xffffffffu : 0xffffu) << (16 * (i % PER_WORD));
        if ((winners[i / 4] >> (8 * (i % 4)) & 255u) != quarter) words[i / PER_WORD] &= ~mask;
    }
}

// A run of a line of ones, or where this is the first of the lines that the run is of.
template <typename T>
__device__ __forceinline__ void set_ones(bool terms_lie_together, unsigned (&words)[4])
{
    const unsigned one = bits_of(static_cast<T>(1.0f));
    words[0] = one;
    if (!terms_lie_together) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = sizeof(T) == 2 ? one << 16 | one : one;
}

// A matrix's line, from its first term on; whether there is one of that number.
template <typename T>
struct MatrixLine {
    const T* start;
    bool there, ones;
};

template <typename T>
__device__ __forceinline__ bool is_ones(const MatrixLine<T>& line)
{
    return line.ones;
}

template <typename T, typename Acc, typename Lying>
__device__ __forceinline__ MatrixLine<T> line_of(const Matrix<T, Acc, Lying>& m, int line)
{
    return {m.values + line * m.by_line, line < m.lines, line == m.ones};
}

template <typename T, typename Acc, typename Lying>
__device__ __forceinline__ long long term_of(const Matrix<T, Acc, Lying>& m, int term)
{
    return term * m.by_term;
}

template <typename T, typename Acc, typename Lying>
__device__ __forceinline__ const T* place_of(const Matrix<T, Acc, Lying>&, const MatrixLine<T>& line, long long term, int*)
{
    return line.there ? line.start + term : nullptr;
}

template <typename T, typename Acc, typename Lying>
__device__ __forceinline__ Origin<T> origin_of(const Matrix<T, Acc, Lying>&, const MatrixLine<T>& line, long long term)
{
    return {line.start + term, line.there};
}
