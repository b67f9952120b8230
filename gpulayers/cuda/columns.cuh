// Sums over the columns of (rows, channels) in a fixed order: for batchnorm.cu, norm.cu, conv_step.cu. Needs rows.cuh.
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

// Of rows of which this thread has `first`, `first` + 256 / width, ... before `last`, in all `count`: the sum of the
// distances from `origin`, and that of the squared distances from the rows' own mean. Neither cancels where the mean is
// far from zero, if `origin` is a number of the column.
template <typename Acc>
struct Distances {
    Acc sum, squares;
};

template <typename T, typename Acc, typename Index>
__device__ __forceinline__ Distances<Acc> distances_of(const T* column, Acc origin, Index first, Index last, Acc count,
                                                       int channels, int width, Acc* part)
{
    Distances<Acc> found = {static_cast<Acc>(0), static_cast<Acc>(0)};
    for (Index row = first; row < last; row += BLOCK / width)
        found.sum += static_cast<Acc>(column[row * channels]) - origin;
    found.sum = add_lines(found.sum, part, width);
    const Acc mean = found.sum / count;
    for (Index row = first; row < last; row += BLOCK / width) {
        const Acc centred = static_cast<Acc>(column[row * channels]) - origin - mean;
        found.squares += centred * centred;
    }
    found.squares = add_lines(found.squares, part, width);
    return found;
}

// What a thread adds up: every (256 / width)-th row from first on, before last; nothing past the last column.
template <typename Index>
struct Stretch {
    int column;
    Index first, last;
    bool writes;  // one thread a column does
};

template <typename Index>
__device__ __forceinline__ Stretch<Index> stretch_of(Index rows, int channels, int width, Index span)
{
    Stretch<Index> share;
    const int line = threadIdx.x / width;
    share.column = static_cast<int>(blockIdx.x) * width + threadIdx.x % width;
    const bool inside = share.column < channels;
    share.first = blockIdx.y * span + line;
    share.last = inside ? share.first - line + rows_of<Index>(blockIdx.y, rows, span) : share.first;
    share.writes = inside && line == 0;
    return share;
}
