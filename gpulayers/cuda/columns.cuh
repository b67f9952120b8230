// Sums over the columns of (rows, channels) in a fixed order: for batchnorm.cu and norm.cu. Needs rows.cuh.
//
// Block row k of a grid takes the rows from k * span on, `span` of them or what is left; its blocks take `width`
// columns each (a power of two up to 32, so that a warp reads whole lines), 256 / width rows at a time.

// Sum over the lines of a block, column by column; every thread of a column gets it. `part` is shared memory.
template <typename Acc>
__device__ __forceinline__ Acc add_lines(Acc value, Acc* part, int width)
{
    part[threadIdx.x] = value;
    __syncthreads();
    for (int half = BLOCK / 2; half >= width; half /= 2) {
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
        __syncthreads();
    }
    value = part[threadIdx.x % width];
    __syncthreads();  // the next sum writes the same words
    return value;
}

// Rows of span k.
template <typename Index>
__device__ __forceinline__ Index rows_of(int k, Index rows, Index span)
{
    const Index left = rows - k * span;
    return span < left ? span : left;
}

// What a thread adds up: every (256 / width)-th row from first on, before last; nothing past the last column.
template <typename Index>
struct Share {
    int column;
    Index first, last;
    bool writes;  // one thread a column does
};

template <typename Index>
__device__ __forceinline__ Share<Index> share_of(Index rows, int channels, int width, Index span)
{
    Share<Index> share;
    const int line = threadIdx.x / width;
    share.column = static_cast<int>(blockIdx.x) * width + threadIdx.x % width;
    const bool inside = share.column < channels;
    share.first = blockIdx.y * span + line;
    share.last = inside ? share.first - line + rows_of<Index>(blockIdx.y, rows, span) : share.first;
    share.writes = inside && line == 0;
    return share;
}
