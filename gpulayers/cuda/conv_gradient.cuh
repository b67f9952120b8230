// The gradient of a convolution's output as a factor of the products: for conv.cu and conv_step.cu. Needs conv.cuh.

// The gradient of an output, or what pooling leaves of it: dz and, if pooled, the winners.
template <typename T, typename Acc>
struct Gradient {
    const T* dz;
    const unsigned char* winners;
    Geometry g;
    int filters;
    bool pooled;
};

// An output pixel's first filter in dz, -1 where pooling leaves it out, and which of a window's four it is.
struct Spot {
    long long place;
    int quarter;
};

template <typename T, typename Acc>
__device__ __forceinline__ Spot spot_of(const Gradient<T, Acc>& source, int image, int row, int col)
{
    const int rows = source.pooled ? source.g.out_rows / 2 : source.g.out_rows;
    const int cols = source.pooled ? source.g.out_cols / 2 : source.g.out_cols;
    const int at_row = source.pooled ? row / 2 : row;
    const int at_col = source.pooled ? col / 2 : col;
    const int quarter = (row % 2) * 2 + col % 2;
    if (at_row >= rows || at_col >= cols) return {-1, quarter};
    const long long line = static_cast<long long>(image) * rows + at_row;
    return {(line * cols + at_col) * source.filters, quarter};
}

template <typename T, typename Acc>
__device__ __forceinline__ const unsigned char* winners_in(const Gradient<T, Acc>& source, const T* place)
{
    return source.pooled ? source.winners + (place - source.dz) : nullptr;
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc gradient_value(const Gradient<T, Acc>& source, const Spot& spot, int filter)
{
    if (spot.place < 0) return static_cast<Acc>(0);
    const T* const place = source.dz + (spot.place + filter);
    const unsigned char* const winner = winners_in(source, place);
    return winner && *winner != spot.quarter ? static_cast<Acc>(0) : static_cast<Acc>(*place);
}

// Lines are filters, terms are output pixels.
template <typename T, typename Acc>
struct FiltersByPixels {
    Gradient<T, Acc> gradient;
    Lines terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ bool has_winners(const FiltersByPixels<T, Acc>& source)
{
    return source.gradient.pooled;
}

template <typename T, typename Acc>
__device__ __forceinline__ int line_of(const FiltersByPixels<T, Acc>& source, int line)
{
    return line < source.gradient.filters ? line : -1;
}

template <typename T, typename Acc>
__device__ __forceinline__ Spot term_of(const FiltersByPixels<T, Acc>& source, int term)
{
    const Pixel pixel = pixel_of(source.gradient.g, term, source.gradient.pooled);
    return spot_of(source.gradient, pixel.image, pixel.row, pixel.col);
}

// dz has its numbers in the order of the pixels, or of their windows. (Other tiles than those for tensor cores take more
// registers so.)
template <typename T>
struct KeptFilter {
    const T* first;
    bool there;
};

template <typename T, typename Acc>
__device__ __forceinline__ KeptFilter<T> kept_line(const FiltersByPixels<T, Acc>& source, int line)
{
    return {source.gradient.dz + line, line < source.gradient.filters};
}

template <typename T, typename Acc>
__device__ __forceinline__ int kept_term(const FiltersByPixels<T, Acc>&, int first, int step)
{
    return first + step;
}

template <typename T, typename Acc>
__device__ __forceinline__ Origin<T> origin_of(const FiltersByPixels<T, Acc>& source, const KeptFilter<T>& line, int term)
{
    const bool pooled = source.gradient.pooled;
    const long long number = pooled ? term / 4 : term;
    return {line.first + number * source.gradient.filters, line.there, pooled ? term % 4 : 0};
}

template <typename T, typename Acc>
__device__ __forceinline__ const T* place_of(const FiltersByPixels<T, Acc>& source, int line, const Spot& term,
                                             int* quarter)
{
    *quarter = term.quarter;
    return line >= 0 && term.place >= 0 ? source.gradient.dz + (term.place + line) : nullptr;
}

template <typename T, typename Acc>
__device__ __forceinline__ const unsigned char* winners_of(const FiltersByPixels<T, Acc>& source, const T* place)
{
    return winners_in(source.gradient, place);
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const FiltersByPixels<T, Acc>& source, int line, int term)
{
    if (line >= source.gradient.filters) return static_cast<Acc>(0);
    return gradient_value(source.gradient, term_of(source, term), line);
}

// Lines are input pixels, terms are the taps (with filters for channels) by which outputs see them.
template <typename T, typename Acc>
struct InputsByTaps {
    Gradient<T, Acc> gradient;
    int pixels;
    Terms terms_lie_together;
};

template <typename T, typename Acc>
__device__ __forceinline__ bool has_winners(const InputsByTaps<T, Acc>& source)
{
    return source.gradient.pooled;
}

// An input pixel in the padded image; no image beyond the last one.
struct Input {
    int image, row, col;
};

template <typename T, typename Acc>
__device__ __forceinline__ Input line_of(const InputsByTaps<T, Acc>& source, int line)
{
    const Geometry& g = source.gradient.g;
    const int strip = line / g.cols;
    const int image = strip / g.rows;
    return {line < source.pixels ? image : -1, strip - image * g.rows + g.pad_top, line - strip * g.cols + g.pad_left};
}

template <typename T, typename Acc>
__device__ __forceinline__ Tap term_of(const InputsByTaps<T, Acc>& source, int term)
{
    return reach_of(source.gradient.g, term, source.gradient.filters);
}

// The output pixel that sees an input by a tap.
template <typename T, typename Acc>
__device__ __forceinline__ Spot seen_by(const InputsByTaps<T, Acc>& source, const Input& input, const Tap& reach)
{
    const Geometry& g = source.gradient.g;
    const int row = window_at(input.row - reach.row, g.stride_rows, g.out_rows);
    const int col = window_at(input.col - reach.col, g.stride_cols, g.out_cols);
    if (input.image < 0 || row < 0 || col < 0) return {-1, 0};
    return spot_of(source.gradient, input.image, row, col);
}

template <typename T, typename Acc>
__device__ __forceinline__ const T* place_of(const InputsByTaps<T, Acc>& source, const Input& line, const Tap& term,
                                             int* quarter)
{
    const Spot spot = seen_by(source, line, term);
    *quarter = spot.quarter;
    return spot.place >= 0 ? source.gradient.dz + (spot.place + term.channel) : nullptr;
}

// Whether an output sees an input by each of few taps (conv.cuh), but for the edges.
template <typename T, typename Acc>
__device__ __forceinline__ bool is_seen_by_all(const Gradient<T, Acc>& source)
{
    const Geometry& g = source.g;
    return has_few_taps(g, g.out_cols, source.filters) && g.stride_rows == 1 && g.stride_cols == 1 && !source.pooled;
}

// The first tap's output is the pixel's own place in the padded image; the others lie before it.
template <typename T, typename Acc>
__device__ __forceinline__ Kept<T, Input> kept_line(const InputsByTaps<T, Acc>& source, int line)
{
    const Geometry& g = source.gradient.g;
    const Input input = line_of(source, line);
    if (input.image < 0 || !is_seen_by_all(source.gradient)) return {source.gradient.dz, {}, input};
    const long long row = static_cast<long long>(input.image) * g.out_rows + input.row;
    const unsigned inside = inside_of(g, inside_along(input.row, -g.dilation_rows, g.kernel_rows, g.out_rows),
                                      inside_along(input.col, -g.dilation_cols, g.kernel_cols, g.out_cols));
    return {source.gradient.dz + (row * g.out_cols + input.col) * source.gradient.filters, inside, input};
}

template <typename T, typename Acc>
__device__ __forceinline__ Reach kept_term(const InputsByTaps<T, Acc>& source, int first, int step)
{
    const Geometry& g = source.gradient.g;
    if (!is_seen_by_all(source.gradient)) return {{}, {}, term_of(source, first + step)};
    return distance_of(g, first + step, g.out_cols, source.gradient.filters, -1);
}

template <typename T, typename Acc>
__device__ __forceinline__ Origin<T> origin_of(const InputsByTaps<T, Acc>& source, const Kept<T, Input>& line,
                                         const Reach& term)
{
    if (is_seen_by_all(source.gradient)) return origin_of_tap(line, term);
    int quarter = 0;
    const T* const place = place_of(source, line.plain, term.reach, &quarter);
    return {place, place != nullptr, quarter};
}

template <typename T, typename Acc>
__device__ __forceinline__ const unsigned char* winners_of(const InputsByTaps<T, Acc>& source, const T* place)
{
    return winners_in(source.gradient, place);
}

template <typename T, typename Acc>
__device__ __forceinline__ Acc value_at(const InputsByTaps<T, Acc>& source, int line, int term)
{
    const Tap reach = term_of(source, term);
    return gradient_value(source.gradient, seen_by(source, line_of(source, line), reach), reach.channel);
}
