// Convolution of NHWC images without a matrix of windows: its numbers are read from the image when a product wants
// them ("implicit GEMM"; Chetlur et al., "cuDNN: Efficient primitives for deep learning", 2014, section 3). These are
// the factors of the products, for conv.cu and conv_step.cu; needs window.cuh, tile.cuh, large.cuh.
//
// A plan compiles the kernels for one shape: -DSPECIALISE=rows=28,... fixes the geometry, and the divisions below
// become multiplications. `pooled` says that a 2 x 2 max pooling follows, stride 2: pixels are then numbered
// window by window, and gradients are the pooled ones with the number of each window's winner (4: none).

#ifndef SPECIALISE
#define SPECIALISE
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

// Where the image has it: null in the padding.
template <typename T, typename Acc>
__device__ __forceinline__ const T* window_place(const Windows<T, Acc>& w, int number, int tap_number)
{
    const Pixel pixel = pixel_of(w.g, number, w.pooled);
    const Tap tap = tap_of(w.g, tap_number, w.g.channels);
    const int row = pixel.row * w.g.stride_rows - w.g.pad_top + tap.row * w.g.dilation_rows;
    const int col = pixel.col * w.g.stride_cols - w.g.pad_left + tap.col * w.g.dilation_cols;
    if (row < 0 || row >= w.g.rows || col < 0 || col >= w.g.cols) return nullptr;
    const long long line = static_cast<long long>(pixel.image) * w.g.rows + row;
    return w.image + (line * w.g.cols + col) * w.g.channels + tap.channel;
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc window_value(const Windows<T, Acc>& w, int number, int tap_number)
{
    const T* const place = window_place(w, number, tap_number);
    return place ? static_cast<Acc>(*place) : static_cast<Acc>(0);
}

// Lines are pixels, terms are taps ...
template <typename T, typename Acc>
struct PixelsByTaps {
    Windows<T, Acc> windows;
    int pixels;
    bool terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const PixelsByTaps<T, Acc>& source, int line, int term)
{
    if (line >= source.pixels) return static_cast<Acc>(0);
    return window_value(source.windows, line, term);
}

// Channels lie together; as below, and for the large tiles alone (see large.cuh).
template <typename T, typename Acc, int WORDS>
__device__ __forceinline__ void run_at(const PixelsByTaps<T, Acc>& source, int line, int term, unsigned (&words)[WORDS])
{
    if (line >= source.pixels) return;
    const T* const place = window_place(source.windows, line, term);
    if (place) load_words(place, words);
}

// ... or the other way round, with a line of ones after the last tap, for the gradient of a bias.
template <typename T, typename Acc>
struct TapsByPixels {
    Windows<T, Acc> windows;
    int taps;
    bool terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const TapsByPixels<T, Acc>& source, int line, int term)
{
    if (line >= source.taps) return static_cast<Acc>(1);
    return window_value(source.windows, term, line);
}

template <typename T, typename Acc, int WORDS>
__device__ __forceinline__ void run_at(const TapsByPixels<T, Acc>& source, int line, int term, unsigned (&words)[WORDS])
{
    if (line == source.taps) words[0] = bits_of(static_cast<T>(1.0f));
    if (line >= source.taps) return;
    const T* const place = window_place(source.windows, term, line);
    if (place) load_words(place, words);
}

// The gradient of an output, or what pooling leaves of it: dz and, if pooled, the winners.
template <typename T, typename Acc>
struct Gradient {
    const T* dz;
    const unsigned char* winners;
    Geometry g;
    int filters;
    bool pooled;
};

// An output pixel's place in dz, -1 where pooling leaves it out, and which of a window's four it is.
template <typename T, typename Acc>
__device__ __forceinline__ long long gradient_place(const Gradient<T, Acc>& source, int image, int row, int col, int filter,
                                                    int* quarter)
{
    const int rows = source.pooled ? source.g.out_rows / 2 : source.g.out_rows;
    const int cols = source.pooled ? source.g.out_cols / 2 : source.g.out_cols;
    const int at_row = source.pooled ? row / 2 : row;
    const int at_col = source.pooled ? col / 2 : col;
    *quarter = (row % 2) * 2 + col % 2;
    if (at_row >= rows || at_col >= cols) return -1;
    const long long line = static_cast<long long>(image) * rows + at_row;
    return (line * cols + at_col) * source.filters + filter;
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc gradient_value(const Gradient<T, Acc>& source, int image, int row, int col, int filter)
{
    int quarter;
    const long long place = gradient_place(source, image, row, col, filter, &quarter);
    if (place < 0 || (source.pooled && source.winners[place] != quarter)) return static_cast<Acc>(0);
    return static_cast<Acc>(source.dz[place]);
}

// Filters that lie together; where another pixel won, zeros.
template <typename T, typename Acc, int WORDS>
__device__ __forceinline__ void gradient_run(const Gradient<T, Acc>& source, int image, int row, int col, int filter,
                                             unsigned (&words)[WORDS])
{
    int quarter;
    const long long place = gradient_place(source, image, row, col, filter, &quarter);
    if (place < 0) return;
    load_words(source.dz + place, words);
    if (!source.pooled) return;
    constexpr int PER_WORD = 4 / sizeof(T);
    unsigned winners[WORDS * PER_WORD / 4];
    load_words(source.winners + place, winners);
#pragma unroll
    for (int i = 0; i < WORDS * PER_WORD; ++i) {
        const unsigned mask = (PER_WORD == 1 ? 0xffffffffu : 0xffffu) << (16 * (i % PER_WORD));
        if ((winners[i / 4] >> (8 * (i % 4)) & 255u) != static_cast<unsigned>(quarter)) words[i / PER_WORD] &= ~mask;
    }
}

// Lines are filters, terms are output pixels.
template <typename T, typename Acc>
struct FiltersByPixels {
    Gradient<T, Acc> gradient;
    bool terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const FiltersByPixels<T, Acc>& source, int line, int term)
{
    if (line >= source.gradient.filters) return static_cast<Acc>(0);
    const Pixel pixel = pixel_of(source.gradient.g, term, source.gradient.pooled);
    return gradient_value(source.gradient, pixel.image, pixel.row, pixel.col, line);
}

template <typename T, typename Acc, int WORDS>
__device__ __forceinline__ void run_at(const FiltersByPixels<T, Acc>& source, int line, int term,
                                       unsigned (&words)[WORDS])
{
    if (line >= source.gradient.filters) return;
    const Pixel pixel = pixel_of(source.gradient.g, term, source.gradient.pooled);
    gradient_run(source.gradient, pixel.image, pixel.row, pixel.col, line, words);
}

// Lines are input pixels, terms are the taps (with filters for channels) by which outputs see them.
template <typename T, typename Acc>
struct InputsByTaps {
    Gradient<T, Acc> gradient;
    int pixels;
    bool terms_lie_together;
};

// The output pixel that sees an input by a tap; no row or column where there is none.
template <typename T, typename Acc>
__device__ __forceinline__ Pixel seen_by(const InputsByTaps<T, Acc>& source, int line, const Tap& tap)
{
    const Geometry& g = source.gradient.g;
    const int strip = line / g.cols;
    const int image = strip / g.rows;
    const int row = window_at(strip - image * g.rows + g.pad_top - tap.row * g.dilation_rows, g.stride_rows, g.out_rows);
    const int col = window_at(line - strip * g.cols + g.pad_left - tap.col * g.dilation_cols, g.stride_cols, g.out_cols);
    return {image, row, col, 0};
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const InputsByTaps<T, Acc>& source, int line, int term)
{
    if (line >= source.pixels) return static_cast<Acc>(0);
    const Tap tap = tap_of(source.gradient.g, term, source.gradient.filters);
    const Pixel pixel = seen_by(source, line, tap);
    if (pixel.row < 0 || pixel.col < 0) return static_cast<Acc>(0);
    return gradient_value(source.gradient, pixel.image, pixel.row, pixel.col, tap.channel);
}

template <typename T, typename Acc, int WORDS>
__device__ __forceinline__ void run_at(const InputsByTaps<T, Acc>& source, int line, int term, unsigned (&words)[WORDS])
{
    if (line >= source.pixels) return;
    const Tap tap = tap_of(source.gradient.g, term, source.gradient.filters);
    const Pixel pixel = seen_by(source, line, tap);
    if (pixel.row < 0 || pixel.col < 0) return;
    gradient_run(source.gradient, pixel.image, pixel.row, pixel.col, tap.channel, words);
}

// The filters with channels for lines and (tap, filter) for terms: w is (taps, channels, filters).
template <typename T, typename Acc>
struct ChannelsByTaps {
    const T* w;
    int channels, filters;
    bool terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const ChannelsByTaps<T, Acc>& source, int line, int term)
{
    if (line >= source.channels) return static_cast<Acc>(0);
    const int tap = term / source.filters;
    const long long row = static_cast<long long>(tap) * source.channels + line;
    return static_cast<Acc>(source.w[row * source.filters + (term - tap * source.filters)]);
}

template <typename T, typename Acc, int WORDS>
__device__ __forceinline__ void run_at(const ChannelsByTaps<T, Acc>& source, int line, int term,
                                       unsigned (&words)[WORDS])
{
    if (line >= source.channels) return;
    const int tap = term / source.filters;
    const long long row = static_cast<long long>(tap) * source.channels + line;
    load_words(source.w + (row * source.filters + (term - tap * source.filters)), words);
}
