// Convolution of NHWC images without a matrix of windows: its numbers are read from the image when a product wants
// them ("implicit GEMM"; Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014, section 3). These are
// the factors of the products but for the gradients (conv_gradient.cuh), for conv.cu and conv_step.cu; needs window.cuh,
// tile.cuh.
//
// A plan compiles the kernels for one shape: -DSPECIALISE=rows=28,... fixes the geometry, and the divisions below
// become multiplications. `pooled` says that a 2 x 2 max pooling follows, stride 2: pixels are then numbered
// window by window, and gradients are the pooled ones with the number of each window's winner (4: none).

#ifdef SPECIALISE
#define SHAPE_IS_KNOWN true
#else
#define SPECIALISE
#define SHAPE_IS_KNOWN false
#endif

struct Geometry {
    int rows, cols, channels, out_rows, out_cols, kernel_rows, kernel_cols;
    int stride_rows, stride_cols, pad_top, pad_left, dilation_rows, dilation_cols;
};

#define GEOMETRY                                                                                                   \
    {rows,        cols,        channels, out_rows, out_cols,      kernel_rows, kernel_cols,                          \
     stride_rows, stride_cols, pad_top,  pad_left, dilation_rows, dilation_cols}

// An output pixel: its place among all of them and, if pooled, its place in its window (0..3).
struct Pixel {
    int image, row, col, quarter;
};

__device__ __forceinline__ Pixel pixel_of(const Geometry& g, int number, bool pooled)
{
    Pixel pixel;
    pixel.quarter = pooled ? number % 4 : 0;
    const int window = pooled ? number / 4 : number;
    const int rows = pooled ? g.out_rows / 2 : g.out_rows;
    const int cols = pooled ? g.out_cols / 2 : g.out_cols;
    const int line = window / cols;
    pixel.image = line / rows;
    pixel.row = line - pixel.image * rows;
    pixel.col = window - line * cols;
    if (pooled) {
        pixel.row = 2 * pixel.row + pixel.quarter / 2;
        pixel.col = 2 * pixel.col + pixel.quarter % 2;
    }
    return pixel;
}

// A tap of the window and one of `depth` channels.
struct Tap {
    int row, col, channel;
};

__device__ __forceinline__ Tap tap_of(const Geometry& g, int number, int depth)
{
    Tap tap;
    const int place = number / depth;
    tap.channel = number - place * depth;
    tap.row = place / g.kernel_cols;
    tap.col = place - tap.row * g.kernel_cols;
    return tap;
}

// The windows of an image, one an output pixel: the matrix that im2col would write.
template <typename T, typename Acc>
struct Windows {
    const T* image;
    Geometry g;
    bool pooled;
};

// Where a window begins: its image, and row and column there, in the padding perhaps; NOWHERE is in no image.
struct Corner {
    int image, row, col;
};
#define NOWHERE (-(1 << 30))

template <typename T, typename Acc>
__device__ __forceinline__ Corner corner_of(const Windows<T, Acc>& w, int number)
{
    const Pixel pixel = pixel_of(w.g, number, w.pooled);
    return {pixel.image, pixel.row * w.g.stride_rows - w.g.pad_top,
            pixel.col * w.g.stride_cols - w.g.pad_left};
}

// What a tap adds to it; of `depth` channels.
__device__ __forceinline__ Tap reach_of(const Geometry& g, int number, int depth)
{
    const Tap tap = tap_of(g, number, depth);
    return {tap.row * g.dilation_rows, tap.col * g.dilation_cols, tap.channel};
}

// Where the image has it: null in the padding.
template <typename T, typename Acc>
__device__ __forceinline__ const T* window_place(const Windows<T, Acc>& w, const Corner& corner, const Tap& reach)
{
    const int row = corner.row + reach.row, col = corner.col + reach.col;
    if (row < 0 || row >= w.g.rows || col < 0 || col >= w.g.cols) return nullptr;
    const long long line = static_cast<long long>(corner.image) * w.g.rows + row;
    return w.image + (line * w.g.cols + col) * w.g.channels + reach.channel;
}

// ---- windows of few taps: which of them lie inside is worked out once for a line
//
// A line has a place that its taps are counted from, outside of the image perhaps, and a bit for each tap that lies
// inside. A tap is then a bit to look at and a distance to add: no row, no column, no image any more. Only for a shape
// that the compiler knows, so that nothing of the other way is left: both at once are more instructions and registers
// than either.

#define FEW_TAPS 32

// Whether there are few taps, and none so far from the first that an int does not hold it, nor any of those that a last
// stage asks for beyond them; in an image (or a gradient) of so many columns and `depth` numbers a pixel.
__device__ __forceinline__ bool has_few_taps(const Geometry& g, int cols, int depth)
{
    if (!SHAPE_IS_KNOWN || static_cast<long long>(g.kernel_rows) * g.kernel_cols > FEW_TAPS) return false;
    const long long down = static_cast<long long>(g.kernel_rows + FEW_TAPS) * g.dilation_rows;
    const long long across = static_cast<long long>(g.kernel_cols - 1) * g.dilation_cols;
    return (down * cols + across + 1) * depth < 1LL << 31;
}

// Which of the positions first, first + step, ... lie below `size`, a bit each.
__device__ __forceinline__ unsigned inside_along(int first, int step, int count, int size)
{
    unsigned inside = 0;
    for (int k = 0; k < count; ++k) {
        const int at = first + k * step;
        if (at >= 0 && at < size) inside |= 1u << k;
    }
    return inside;
}

// And of both axes, in the order of the taps.
__device__ __forceinline__ unsigned inside_of(const Geometry& g, unsigned rows, unsigned cols)
{
    unsigned inside = 0;
    for (int k = 0; k < g.kernel_rows; ++k)
        if (rows >> k & 1) inside |= cols << k * g.kernel_cols;
    return inside;
}

// What is kept of a line: the first tap's place and which taps lie inside, none of a line beyond the last one; of more
// taps, the plain line, as line_of has it.
template <typename T, typename Line>
struct Kept {
    const T* first;
    unsigned inside;
    Line plain;
};

// Of few taps, a tap's number and how far a channel of it is from the first tap's first; of more, the tap's reach.
struct Reach {
    int number, distance;
    Tap reach;
};

// Where an image has so many columns and `depth` numbers a pixel; a `direction` of -1 goes back.
__device__ __forceinline__ Reach distance_of(const Geometry& g, int term, int cols, int depth, int direction)
{
    const Tap reach = reach_of(g, term, depth);
    const int pixels = reach.row * cols + reach.col;
    return {term / depth % FEW_TAPS, direction * pixels * depth + reach.channel, {}};
}

template <typename T, typename Line>
__device__ __forceinline__ Origin<T> origin_of_tap(const Kept<T, Line>& line, const Reach& term)
{
    return {line.first + term.distance, (line.inside >> term.number & 1) != 0};
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc window_value(const Windows<T, Acc>& w, int number, int tap_number)
{
    const T* const place = window_place(w, corner_of(w, number), reach_of(w.g, tap_number, w.g.channels));
    return place ? static_cast<Acc>(*place) : static_cast<Acc>(0);
}

// Lines are pixels, terms are taps ...
template <typename T, typename Acc>
struct PixelsByTaps {
    Windows<T, Acc> windows;
    int pixels;
    Terms terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const PixelsByTaps<T, Acc>& source, int line, int term)
{
    if (line >= source.pixels) return static_cast<Acc>(0);
    return window_value(source.windows, line, term);
}

// Channels lie together; as below, for runs (see tile.cuh).
template <typename T, typename Acc>
__device__ __forceinline__ Corner line_of(const PixelsByTaps<T, Acc>& source, int line)
{
    if (line >= source.pixels) return {0, NOWHERE, 0};
    return corner_of(source.windows, line);
}

template <typename T, typename Acc>
__device__ __forceinline__ Tap term_of(const PixelsByTaps<T, Acc>& source, int term)
{
    return reach_of(source.windows.g, term, source.windows.g.channels);
}

template <typename T, typename Acc>
__device__ __forceinline__ const T* place_of(const PixelsByTaps<T, Acc>& source, const Corner& line, const Tap& term,
                                             int*)
{
    return window_place(source.windows, line, term);
}

// The same for who keeps a line.
template <typename T, typename Acc>
__device__ __forceinline__ Kept<T, Corner> kept_line(const PixelsByTaps<T, Acc>& source, int line)
{
    const Geometry& g = source.windows.g;
    const Corner corner = line_of(source, line);
    if (line >= source.pixels || !has_few_taps(g, g.cols, g.channels)) return {source.windows.image, {}, corner};
    const long long row = static_cast<long long>(corner.image) * g.rows + corner.row;
    const unsigned inside = inside_of(g, inside_along(corner.row, g.dilation_rows, g.kernel_rows, g.rows),
                                      inside_along(corner.col, g.dilation_cols, g.kernel_cols, g.cols));
    return {source.windows.image + (row * g.cols + corner.col) * g.channels, inside, corner};
}

template <typename T, typename Acc>
__device__ __forceinline__ Reach kept_term(const PixelsByTaps<T, Acc>& source, int first, int step)
{
    const Geometry& g = source.windows.g;
    if (!has_few_taps(g, g.cols, g.channels)) return {{}, {}, term_of(source, first + step)};
    return distance_of(g, first + step, g.cols, g.channels, 1);
}

template <typename T, typename Acc>
__device__ __forceinline__ Origin<T> origin_of(const PixelsByTaps<T, Acc>& source, const Kept<T, Corner>& line,
                                         const Reach& term)
{
    const Geometry& g = source.windows.g;
    if (has_few_taps(g, g.cols, g.channels)) return origin_of_tap(line, term);
    const T* const place = window_place(source.windows, line.plain, term.reach);
    return {place, place != nullptr};
}

// ... or the other way round, with a line of ones after the last tap, for the gradient of a bias.
template <typename T, typename Acc>
struct TapsByPixels {
    Windows<T, Acc> windows;
    int taps;
    Lines terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const TapsByPixels<T, Acc>& source, int line, int term)
{
    if (line >= source.taps) return static_cast<Acc>(1);
    return window_value(source.windows, term, line);
}

// A tap, or the line of ones; beyond that NOWHERE.
struct TapLine {
    Tap reach;
    bool ones;
};

__device__ __forceinline__ bool is_ones(const TapLine& line)
{
    return line.ones;
}

template <typename T, typename Acc>
__device__ __forceinline__ TapLine line_of(const TapsByPixels<T, Acc>& source, int line)
{
    if (line >= source.taps) return {{NOWHERE, 0, 0}, line == source.taps};
    return {reach_of(source.windows.g, line, source.windows.g.channels), false};
}

template <typename T, typename Acc>
__device__ __forceinline__ Corner term_of(const TapsByPixels<T, Acc>& source, int term)
{
    return corner_of(source.windows, term);
}

template <typename T, typename Acc>
__device__ __forceinline__ const T* place_of(const TapsByPixels<T, Acc>& source, const TapLine& line,
                                             const Corner& term, int*)
{
    return window_place(source.windows, term, line.reach);
}

// The filters as lines, taps as terms: w is (taps, depth, filters), where images may have more channels than `depth`, which
// are zeros: so that they come in whole runs.
template <typename T, typename Acc>
struct FiltersByTaps {
    const T* w;
    int channels, depth, filters;
    Lines terms_lie_together;
};

template <typename T>
struct FilterLine {
    const T* first;
    bool there;
};

template <typename T, typename Acc>
__device__ __forceinline__ FilterLine<T> line_of(const FiltersByTaps<T, Acc>& source, int line)
{
    return {source.w + line, line < source.filters};
}

// Where a term's filters begin, negative for those of a channel that is not there.
template <typename T, typename Acc>
__device__ __forceinline__ long long term_of(const FiltersByTaps<T, Acc>& source, int term)
{
    if (source.channels == source.depth) return static_cast<long long>(term) * source.filters;
    const int tap = term / source.channels;
    const int channel = term - tap * source.channels;
    return static_cast<long long>(channel < source.depth ? tap * source.depth + channel : -1) * source.filters;
}

template <typename T, typename Acc>
__device__ __forceinline__ const T* place_of(const FiltersByTaps<T, Acc>&, const FilterLine<T>& line, long long term, int*)
{
    return line.there && term >= 0 ? line.first + term : nullptr;
}

template <typename T, typename Acc>
__device__ __forceinline__ Origin<T> origin_of(const FiltersByTaps<T, Acc>&, const FilterLine<T>& line, long long term)
{
    return {line.first + term, line.there && term >= 0};
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const FiltersByTaps<T, Acc>& source, int line, int term)
{
    const T* const place = place_of(source, line_of(source, line), term_of(source, term), nullptr);
    return place ? static_cast<Acc>(*place) : static_cast<Acc>(0);
}

// The filters with channels for lines and (tap, filter) for terms: w is (taps, channels, filters).
template <typename T, typename Acc>
struct ChannelsByTaps {
    const T* w;
    int channels, filters;
    Terms terms_lie_together;
};

struct ChannelLine {
    long long start;
    bool there;
};

template <typename T, typename Acc>
__device__ __forceinline__ ChannelLine line_of(const ChannelsByTaps<T, Acc>& source, int line)
{
    return {static_cast<long long>(line) * source.filters, line < source.channels};
}

template <typename T, typename Acc>
__device__ __forceinline__ long long term_of(const ChannelsByTaps<T, Acc>& source, int term)
{
    const int tap = term / source.filters;
    return static_cast<long long>(tap) * source.channels * source.filters + (term - tap * source.filters);
}

template <typename T, typename Acc>
__device__ __forceinline__ const T* place_of(const ChannelsByTaps<T, Acc>& source, const ChannelLine& line, long long term,
                                             int*)
{
    return line.there ? source.w + (line.start + term) : nullptr;
}

template <typename T, typename Acc>
__device__ __forceinline__ Origin<T> origin_of(const ChannelsByTaps<T, Acc>& source, const ChannelLine& line,
                                               long long term)
{
    return {source.w + (line.start + term), line.there};
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const ChannelsByTaps<T, Acc>& source, int line, int term)
{
    if (line >= source.channels) return static_cast<Acc>(0);
    return static_cast<Acc>(source.w[line_of(source, line).start + term_of(source, term)]);
}
