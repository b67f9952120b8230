// Images and windows over them: for im2col.cu and pool.cu.

// Where an element of an (images, rows, cols, channels) array lies; channel counts groups of the innermost axis.
template <typename Index>
struct Place {
    Index image;
    int row, col, channel;
};

template <typename Index>
__device__ __forceinline__ Place<Index> place_of(Index number, int rows, int cols, int channels)
{
    Place<Index> place;
    Index rest = number / channels;
    place.channel = static_cast<int>(number - rest * channels);
    const Index line = rest / cols;
    place.col = static_cast<int>(rest - line * cols);
    place.image = line / rows;
    place.row = static_cast<int>(line - place.image * rows);
    return place;
}

// The window, along one axis, with a tap `offset` = position + padding - tap * dilation away from the first window's
// start: its number, or -1 if no window starts there.
__device__ __forceinline__ int window_at(int offset, int stride, int windows)
{
    if (offset < 0) return -1;
    const int window = offset / stride;
    return window * stride == offset && window < windows ? window : -1;
}

// The parameters of every kernel over windows, in table.WINDOW's order; dilation is the spacing of the taps (1 = dense).
#define WINDOW_PARAMETERS                                                                                          \
    int rows, int cols, int channels, int out_rows, int out_cols, int kernel_rows, int kernel_cols,                \
        int stride_rows, int stride_cols, int pad_top, int pad_left, int dilation_rows, int dilation_cols
