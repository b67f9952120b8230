// The product of two matrices, a tile of it by a block: for gemm.cu and conv.cu.
//
// A block of 256 threads works out HEIGHT x WIDTH numbers, a thread OWN x OWN of them in registers. The factors come
// through shared memory, DEPTH terms of the sums at a time; while those are multiplied the next ones are on their way.
// The order of the terms is fixed: bitwise repeatable. What a factor is (a matrix, the windows of an image, a gradient)
// is said by an overload of value_at(factor, line, term), which reads nothing beyond the last line.

#define TILE_BLOCK 256
#define OWN 4
#define DEPTH_OF(WIDTH) ((WIDTH) < 64 ? 8 : 16)
// Keeps rows of shared memory 16-byte aligned and columns off a single bank.
#define PADDING 4
#define HEIGHT_OF(WIDTH) (TILE_BLOCK * OWN * OWN / (WIDTH))

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

// sum[i][j] = sum over from <= k < to of left(row + i, k) * right(k, col + j), row and col those of this thread.
template <typename Acc, int WIDTH, typename Left, typename Right>
__device__ __forceinline__ void multiply(const Left& left, const Right& right, int first_row, int first_col, int from,
                                         int to, Acc (&sum)[OWN][OWN])
{
    constexpr int HEIGHT = HEIGHT_OF(WIDTH);
    constexpr int DEPTH = DEPTH_OF(WIDTH);
    __shared__ __align__(16) Acc a[DEPTH][HEIGHT + PADDING];
    __shared__ __align__(16) Acc b[DEPTH][WIDTH + PADDING];
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

// Where a product goes: to `values`, or to `partial` (parts, rows, cols) where several blocks share the terms.
// `pooled`: four rows in a row are a 2 x 2 window; its maximum is kept, and in `winners` which of the four it was,
// 4 where ReLU made it zero.
template <typename T, typename Acc>
struct Target {
    T* values;
    Acc* partial;
    const T* bias;
    const T* mask;
    unsigned char* winners;
    int rows, cols;
    bool has_bias, has_mask, relu, pooled;
};

// What follows a sum: bias, ReLU (NaN stays), and the slope of the ReLU before, told by that one's output.
template <typename T, typename Acc>
__device__ __forceinline__ Acc finished(const Target<T, Acc>& target, long long place, int col, Acc sum)
{
    if (target.has_bias) sum += static_cast<Acc>(target.bias[col]);
    if (target.relu && sum <= static_cast<Acc>(0)) sum = static_cast<Acc>(0);
    if (target.has_mask && !(static_cast<Acc>(target.mask[place]) > static_cast<Acc>(0))) sum = static_cast<Acc>(0);
    return sum;
}

// Maximum of the four rows from `row` on: the first one wins ties, the first NaN everything.
template <typename T, typename Acc>
__device__ __forceinline__ void put_maximum(const Target<T, Acc>& target, int row, int col, const Acc (&sum)[OWN][OWN],
                                            int own)
{
    Acc best = sum[0][own];
    int winner = 0;
#pragma unroll
    for (int i = 1; i < OWN; ++i)
        if (sum[i][own] > best || (sum[i][own] != sum[i][own] && best == best)) {
            best = sum[i][own];
            winner = i;
        }
    const long long place = static_cast<long long>(row / OWN) * target.cols + col;
    best = finished(target, place, col, best);
    target.values[place] = static_cast<T>(best);
    target.winners[place] = static_cast<unsigned char>(target.relu && !(best > static_cast<Acc>(0)) ? OWN : winner);
}

template <typename T, typename Acc, int WIDTH>
__device__ __forceinline__ void put(const Target<T, Acc>& target, const Share& share, const Acc (&sum)[OWN][OWN])
{
    const int row = share.row * HEIGHT_OF(WIDTH) + OWN * (static_cast<int>(threadIdx.x) / (WIDTH / OWN));
    const int col = share.col * WIDTH + OWN * (static_cast<int>(threadIdx.x) % (WIDTH / OWN));
#pragma unroll
    for (int j = 0; j < OWN; ++j) {
        if (col + j >= target.cols) continue;
        if (target.pooled) {
            if (row < target.rows) put_maximum(target, row, col + j, sum, j);
            continue;
        }
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
            if (row + i >= target.rows) continue;
            const long long place = static_cast<long long>(row + i) * target.cols + col + j;
            if (share.parts > 1)
                target.partial[share.part * (static_cast<long long>(target.rows) * target.cols) + place] = sum[i][j];
            else
                target.values[place] = static_cast<T>(finished(target, place, col + j, sum[i][j]));
        }
    }
}

// A block's share of left * right; a part is `span` of the `terms`.
template <typename T, typename Acc, int WIDTH, typename Left, typename Right>
__device__ __forceinline__ void work_out(const Share& share, const Left& left, const Right& right,
                                         const Target<T, Acc>& target, int terms, int span)
{
    const int from = share.part * span;
    const int to = terms - from < span ? terms : from + span;
    Acc sum[OWN][OWN];
    multiply<Acc, WIDTH>(left, right, share.row * HEIGHT_OF(WIDTH), share.col * WIDTH, from, to, sum);
    put<T, Acc, WIDTH>(target, share, sum);
}

// A matrix as it lies: lines of terms. Line number `ones` is all ones (-1: there is none), so that a product's row of
// that number is the sum of the other factor's terms: the gradient of a bias.
template <typename T, typename Acc>
struct Matrix {
    const T* values;
    int lines;
    long long by_line, by_term;
    int ones;
    bool terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const Matrix<T, Acc>& m, int line, int term)
{
    if (line == m.ones) return static_cast<Acc>(1);
    if (line >= m.lines) return static_cast<Acc>(0);
    return static_cast<Acc>(m.values[line * m.by_line + term * m.by_term]);
}
