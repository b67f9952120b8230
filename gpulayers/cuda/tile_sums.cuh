// Sums over the rows of a tile that a block has just written (tile.cuh, large.cuh), column by column, for the batch
// normalisation before or behind a convolution: for conv_step.cu. Needs rows.cuh, columns.cuh, norm.cuh.
//
// A block leaves two numbers a column, `each` (tiles, 2, cols). Of every `members` tiles below one another the block
// that comes last adds up theirs, in the order of the tiles, whichever it is: bitwise repeatable. So few sums are left
// to those who read them next. `arrived` counts the blocks of each group; all zeros before a launch and after it.

// The tiles that are added up together: their number, the first of them, and how many there are.
struct Group {
    int number, first, count;
};

__device__ __forceinline__ Group group_of(int tile, int tiles, int members)
{
    const int number = tile / members;
    const int first = number * members;
    return {number, first, tiles - first < members ? tiles - first : members};
}

// Whether all other blocks of a group have come; what they wrote before can then be read.
__device__ __forceinline__ bool comes_last(unsigned* arrived, int count)
{
    __shared__ bool last;
    __syncthreads();  // all of this block has written
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(arrived, count - 1) == count - 1;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// Where the sums of tiles go, and how many tiles there are.
template <typename Acc>
struct TileSums {
    Acc* each;
    unsigned* arrived;
    int tiles, members;
};

template <typename Acc>
__device__ __forceinline__ int groups_of(const TileSums<Acc>& to)
{
    return (to.tiles + to.members - 1) / to.members;
}

template <typename Acc>
__device__ __forceinline__ Acc* sums_of_tile(const TileSums<Acc>& to, int tile, int cols)
{
    return to.each + static_cast<long long>(tile) * 2 * cols;
}

__device__ __forceinline__ int rows_of_tile(int tile, int rows, int height)
{
    return rows - tile * height < height ? rows - tile * height : height;
}

// A thread has a column of a tile, and every (256 / WIDTH)-th row from this one on.
template <typename Tile>
__device__ __forceinline__ int own_line()
{
    return static_cast<int>(threadIdx.x) / Tile::WIDTH;
}

template <typename Tile>
__device__ __forceinline__ int own_col(const Share& share)
{
    return share.col * Tile::WIDTH + static_cast<int>(threadIdx.x) % Tile::WIDTH;
}

// Puts down a column's sums; whether this thread is to add up those of its group.
template <typename Tile, typename Acc>
__device__ __forceinline__ bool leave(const TileSums<Acc>& to, const Share& share, const Group& group, int cols,
                                      Acc first, Acc second)
{
    const int col = own_col<Tile>(share);
    const bool mine = own_line<Tile>() == 0 && col < cols;
    if (mine) {
        Acc* const own = sums_of_tile(to, share.row, cols) + col;
        own[0] = first;
        own[cols] = second;
    }
    return comes_last(to.arrived + share.col * groups_of(to) + group.number, group.count) && mine;
}

// The moments of a convolution's output as T holds it, for norm_forward: of the rows of a group the sum of the
// distances from the first one, and that of the squared distances from their mean.
template <typename Tile, typename Acc>
struct TakeMoments {
    TileSums<Acc> tiles;
    Acc* sums;  // (cols, groups), as squares
    Acc* squares;
};

// The moments of a group's column from those of its tiles. (Chan, Golub & LeVeque, "Updating formulae and a pairwise
// algorithm for computing sample variances", 1979.)
template <typename Tile, typename T, typename Acc>
__device__ __forceinline__ void merge_moments(const TakeMoments<Tile, Acc>& take, const Target<T, Acc>& target,
                                              const Group& group, int col)
{
    const int cols = target.cols;
    const long long step = static_cast<long long>(Tile::HEIGHT) * cols;
    const T* const column = target.values + group.first * step + col;
    const Acc first = static_cast<Acc>(column[0]);
    Acc sum = static_cast<Acc>(0), rows = static_cast<Acc>(0), square = static_cast<Acc>(0);
    for (int k = 0; k < group.count; ++k) {
        const Acc count = static_cast<Acc>(rows_of_tile(group.first + k, target.rows, Tile::HEIGHT));
        const Acc away = static_cast<Acc>(column[k * step]) - first;
        sum += sums_of_tile(take.tiles, group.first + k, cols)[col] + count * away;
        rows += count;
    }
    for (int k = 0; k < group.count; ++k) {
        const Acc* const own = sums_of_tile(take.tiles, group.first + k, cols) + col;
        const Acc count = static_cast<Acc>(rows_of_tile(group.first + k, target.rows, Tile::HEIGHT));
        const Acc away = own[0] / count + (static_cast<Acc>(column[k * step]) - first) - sum / rows;
        square += own[cols] + count * away * away;
    }
    const long long place = static_cast<long long>(col) * groups_of(take.tiles) + group.number;
    take.sums[place] = sum;
    take.squares[place] = square;
}

template <typename Tile, typename T, typename Acc>
__device__ __forceinline__ void follow(const TakeMoments<Tile, Acc>& take, const Target<T, Acc>& target,
                                       const Share& share)
{
    __shared__ Acc part[TILE_BLOCK];
    const int cols = target.cols, col = own_col<Tile>(share);
    const T* const column = target.values + (col < cols ? col : 0);
    const long long first = static_cast<long long>(share.row) * Tile::HEIGHT;
    const int count = rows_of_tile(share.row, target.rows, Tile::HEIGHT);
    __syncthreads();  // the tile is there
    const Acc origin = static_cast<Acc>(column[first * cols]);
    const Distances<Acc> found = distances_of(column, origin, first + own_line<Tile>(), first + count,
                                              static_cast<Acc>(count), cols, Tile::WIDTH, part);
    const Group group = group_of(share.row, take.tiles.tiles, take.tiles.members);
    if (leave<Tile>(take.tiles, share, group, cols, found.sum, found.squares)) merge_moments(take, target, group, col);
}

// The normalisation whose output's gradient a convolution works out: what `passed_on` needs to know.
template <typename T, typename Acc>
struct Before {
    Picture picture;
    const T* x;
    const unsigned char* winners;
    const T* scaler;
    const T* intercept;
    const Acc* shift;
    const Acc* inverse;
    bool activated;
};

// The gradients of its scaler and intercept in parts, as norm_gradient_sums leaves them: of the rows of a group the
// sums of dy * x_hat and, behind those of all columns, of dy.
template <typename Tile, typename T, typename Acc>
struct TakeGradients {
    TileSums<Acc> tiles;
    Acc* sums;  // (groups, 2, cols); null where there is no such normalisation
    Before<T, Acc> before;
};

template <typename Tile, typename T, typename Acc>
__device__ __forceinline__ void merge_gradients(const TakeGradients<Tile, T, Acc>& take, const Group& group, int cols,
                                                int col)
{
    Acc product = static_cast<Acc>(0), sum = static_cast<Acc>(0);
    for (int tile = group.first; tile < group.first + group.count; ++tile) {
        const Acc* const own = sums_of_tile(take.tiles, tile, cols) + col;
        product += own[0];
        sum += own[cols];
    }
    Acc* const to = take.sums + static_cast<long long>(group.number) * 2 * cols + col;
    to[0] = product;
    to[cols] = sum;
}

template <typename Tile, typename T, typename Acc>
__device__ __forceinline__ void follow(const TakeGradients<Tile, T, Acc>& take, const Target<T, Acc>& target,
                                       const Share& share)
{
    if (!take.sums) return;
    __shared__ Acc part[TILE_BLOCK];
    const Before<T, Acc>& b = take.before;
    const int cols = target.cols, col = own_col<Tile>(share), known = col < cols ? col : 0;
    const Column<Acc> column = column_of(known, b.x, b.shift[known], b.inverse[known], b.scaler, b.intercept);
    const int first = share.row * Tile::HEIGHT;
    const int last = first + rows_of_tile(share.row, target.rows, Tile::HEIGHT);
    __syncthreads();  // the tile is there
    Acc sum = static_cast<Acc>(0);
    Acc product = static_cast<Acc>(0);
    for (int row = first + own_line<Tile>(); row < last; row += TILE_BLOCK / Tile::WIDTH) {
        const Acc dy = static_cast<Acc>(target.values[static_cast<long long>(row) * cols + known]);
        const Passed<Acc> passed =
            passed_on<long long>(b.picture, b.x, b.winners, column, row, cols, known, b.activated, dy);
        sum += passed.gradient;
        product += passed.gradient * passed.x_hat;
    }
    sum = add_lines(sum, part, Tile::WIDTH);
    product = add_lines(product, part, Tile::WIDTH);
    const Group group = group_of(share.row, take.tiles.tiles, take.tiles.members);
    if (leave<Tile>(take.tiles, share, group, cols, product, sum)) merge_gradients(take, group, cols, col);
}
