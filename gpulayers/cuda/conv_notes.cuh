// Windows of few taps (conv.cuh) whose pixels are the terms that a pipeline goes through, for the gradient of weights: each
// pixel is worked out once by one thread, for all lines, and noted in shared memory: where its window begins, and which
// taps lie inside. Needs stages.cuh.

struct Note {
    int pixel;  // of the first tap, counted through all images; outside of its own perhaps
    unsigned inside;
};

__device__ __forceinline__ Note* notes()
{
    __shared__ Note noted[2 * NOTED];
    return noted;
}

template <typename T, typename Acc>
struct NotedPixels {
    TapsByPixels<T, Acc> source;
    int from;
    Lines terms_lie_together;
};

// A line's tap as a bit, and where the tap and channel of the first pixel's window are.
template <typename T>
struct NotedLine {
    const T* first;
    unsigned bit;
    TapLine plain;
};

struct NotedTerm {
    Note note;
    Corner plain;
};

template <typename T>
__device__ __forceinline__ bool is_ones(const NotedLine<T>& line)
{
    return line.plain.ones;
}

template <typename T, typename Acc>
__device__ __forceinline__ NotedPixels<T, Acc> noting(const TapsByPixels<T, Acc>& source, int from)
{
    return {source, from, Lines()};
}

template <typename T, typename Acc>
__device__ __forceinline__ bool is_noted(const NotedPixels<T, Acc>& noted)
{
    const Geometry& g = noted.source.windows.g;
    return has_few_taps(g, g.cols, g.channels);
}

// Of a stage's first term; those of the stage lie together.
template <typename T, typename Acc>
__device__ __forceinline__ int place_of_note(const NotedPixels<T, Acc>& noted, int term)
{
    return static_cast<int>(static_cast<unsigned>(term - noted.from) % (2 * NOTED));
}

// This thread's of the NOTED terms from `first` on; beyond the last one nobody looks.
template <typename T, typename Acc>
__device__ __forceinline__ void note_terms(const NotedPixels<T, Acc>& noted, int first)
{
    const Geometry& g = noted.source.windows.g;
    const int term = first + static_cast<int>(threadIdx.x);
    const Corner corner = corner_of(noted.source.windows, term);
    const long long row = static_cast<long long>(corner.image) * g.rows + corner.row;
    notes()[place_of_note(noted, term)] = {
        static_cast<int>(row * g.cols + corner.col),
        inside_of(g, inside_along(corner.row, g.dilation_rows, g.kernel_rows, g.rows),
                  inside_along(corner.col, g.dilation_cols, g.kernel_cols, g.cols))};
}

template <typename T, typename Acc>
__device__ __forceinline__ void begin_notes(const NotedPixels<T, Acc>& noted)
{
    if (!is_noted(noted)) return;
    note_terms(noted, noted.from);
    note_terms(noted, noted.from + NOTED);
    __syncthreads();
}

template <typename T, typename Acc>
__device__ __forceinline__ void go_on_noting(const NotedPixels<T, Acc>& noted, int next)
{
    if (is_noted(noted) && static_cast<unsigned>(next - noted.from) % NOTED == 0) note_terms(noted, next + NOTED);
}

template <typename T, typename Acc>
__device__ __forceinline__ NotedLine<T> kept_line(const NotedPixels<T, Acc>& noted, int line)
{
    const Windows<T, Acc>& w = noted.source.windows;
    const TapLine plain = line_of(noted.source, line);
    if (line >= noted.source.taps || !is_noted(noted)) return {w.image, 0, plain};
    const Reach reach = distance_of(w.g, line, w.g.cols, w.g.channels, 1);
    return {w.image + reach.distance, 1u << reach.number, plain};
}

template <typename T, typename Acc>
__device__ __forceinline__ NotedTerm kept_term(const NotedPixels<T, Acc>& noted, int first, int step)
{
    if (!is_noted(noted)) return {{}, term_of(noted.source, first + step)};
    return {notes()[place_of_note(noted, first) + step], {}};
}

template <typename T, typename Acc>
__device__ __forceinline__ Origin<T> origin_of(const NotedPixels<T, Acc>& noted, const NotedLine<T>& line,
                                         const NotedTerm& term)
{
    const Windows<T, Acc>& w = noted.source.windows;
    if (is_noted(noted)) {
        const long long distance = static_cast<long long>(term.note.pixel) * w.g.channels;
        return {line.first + distance, (term.note.inside & line.bit) != 0};
    }
    const T* const place = window_place(w, term.plain, line.plain.reach);
    return {place, place != nullptr};
}
