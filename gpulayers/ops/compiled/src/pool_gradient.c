/* Max and average pooling, backward. A pixel's gradients come from the windows that see it, in the
 * order of their taps, and threads share no pixel. */
#include "pool.h"
#include "recorded.h"

#define IMAGE_BYTES (256 << 10) /* half the second-level cache */
#define MOST_VIEWS 256 /* of one pixel; the caller sees to it */

/* A window that sees a row (or column) of the image: its number, and with which tap. */
typedef struct {
    i64 out, tap;
} view_t;

typedef struct {
    const window_t *w;
    const real *dy, *y; /* y: outputs, where a ReLU before the pooling is undone too, else NULL */
    const uint8_t *winners; /* NULL for averages */
    real *dx;
    real share;              /* of an average's gradient for each pixel of its window */
    i64 outputs;             /* elements of dy */
    const i64 *starts;       /* the views of column c are [starts[c], starts[c + 1]) */
    const view_t *views;
} job_t;

/* The windows that see position `at` (without padding), by rising tap; returns how many. */
static i64 find_views(i64 at, i64 taps, i64 spacing, i64 stride, i64 outputs, view_t *views) {
    i64 found = 0;
    for (i64 tap = 0; tap < taps; tap++) {
        i64 start = at - tap * spacing;
        if (start < 0 || start % stride || start / stride >= outputs) continue;
        views[found++] = (view_t){start / stride, tap};
    }
    return found;
}

/* The gradients of VW outputs at `at`, through the ReLU before the pooling if there was one. */
INLINE vec incoming(const job_t *job, i64 at, int relu) {
    vec g = load(job->dy + at);
    if (relu) g = g * select(load(job->y + at) > splat(0), splat(1), splat(0));
    return g;
}

INLINE real incoming_scalar(const job_t *job, i64 at, int relu) {
    real g = job->dy[at];
    if (relu) g *= job->y[at] > 0 ? (real)1 : (real)0;
    return g;
}

/* VW channels of a pixel that `count` windows see. */
INLINE void gather_vector(const job_t *job, const view_t *seen, i64 count, i64 channel, real *dx,
                          i64 kept, int max, int relu) {
    vec sum = splat(0);
    for (i64 k = 0; k < count; k++) {
        i64 at = seen[k].out + channel;
        vec g = incoming(job, at, relu);
        if (max) {
            mask won = load_winners(job->winners + at) == splat_bits((bits)seen[k].tap);
            g = (vec)(won & (mask)g);
        } else {
            g = g * splat(job->share);
        }
        sum = sum + g;
    }
    store_lanes(dx + channel, sum, kept);
}

/* One channel, the same way. */
INLINE void gather_scalar(const job_t *job, const view_t *seen, i64 count, i64 channel, real *dx,
                          int max, int relu) {
    real sum = 0;
    for (i64 k = 0; k < count; k++) {
        i64 at = seen[k].out + channel;
        real g = incoming_scalar(job, at, relu);
        if (!max)
            sum += g * job->share;
        else if (job->winners[at] == seen[k].tap)
            sum += g;
    }
    dx[channel] = sum;
}

/* Rows of pixels [begin, end), counted over all images. */
INLINE void gather_rows(const job_t *of_all, i64 begin, i64 end, int max, int relu) {
    OWN_COPY(job, w, of_all);
    view_t row[MOST_VIEWS], seen[MOST_VIEWS]; /* seen: `out` is the element where a pixel begins */
    for (i64 q = begin; q < end; q++) {
        i64 image = q / w->rows;
        i64 rows = find_views(q % w->rows + w->top, w->fr, w->dr, w->sr, w->out_rows, row);
        for (i64 c = 0; c < w->cols; c++) {
            real *dx = job->dx + (q * w->cols + c) * w->ch;
            i64 count = 0;
            for (i64 i = 0; i < rows; i++) {
                i64 line = (image * w->out_rows + row[i].out) * w->out_cols;
                for (i64 k = job->starts[c]; k < job->starts[c + 1]; k++) {
                    view_t col = job->views[k];
                    seen[count++] = (view_t){(line + col.out) * w->ch,
                                             row[i].tap * w->fc + col.tap};
                }
            }
            if (count == 0) {
                memset(dx, 0, w->ch * sizeof(real));
                continue;
            }
            /* the first tap's output is the last one */
            i64 readable = job->outputs - seen[0].out;
            i64 writable = ((end - q) * w->cols - c) * w->ch;
#define VECTOR(t, kept) gather_vector(job, seen, count, t, dx, kept, max, relu)
#define SCALAR(t) gather_scalar(job, seen, count, t, dx, max, relu)
            FOR_CHANNELS(w->ch, readable, writable, VECTOR, SCALAR)
#undef VECTOR
#undef SCALAR
        }
    }
}

static void gather_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    if (!job->winners)
        gather_rows(job, begin, end, 0, 0);
    else if (!job->y)
        gather_rows(job, begin, end, 1, 0);
    else
        gather_rows(job, begin, end, 1, 1);
}

/* ------------------------------------------------------------- windows of 2 x 2 side by side */

/* VW channels of an output, to the left pixels of its window and those `ch` on. */
INLINE void spread_vector(const job_t *job, i64 at, real *top, real *bottom, i64 kept, int max,
                          int relu) {
    vec g = incoming(job, at, relu);
    soon(job->dy + at);
    mask winner = max ? load_winners(job->winners + at) : splat_bits(0);
    if (!max) g = g * splat(job->share);
    /* from left to right, as what is written beyond a pixel belongs to the next one */
    for (int tap = 0; tap < 4; tap++) {
        mask won = max ? winner == splat_bits(tap) : splat_bits(-1);
        real *dx = (tap < 2 ? top : bottom) + tap % 2 * job->w->ch;
        store_lanes(dx, (vec)(won & (mask)g), kept);
        soon_written(dx);
    }
}

INLINE void spread_scalar(const job_t *job, i64 at, real *top, real *bottom, int max, int relu) {
    real g = incoming_scalar(job, at, relu);
    for (int tap = 0; tap < 4; tap++) {
        real mine = !max ? g * job->share : job->winners[at] == tap ? g : 0;
        (tap < 2 ? top : bottom)[tap % 2 * job->w->ch] = mine;
    }
}

/* Rows of outputs [begin, end), counted over all images; each writes two rows of pixels. */
INLINE void spread_rows(const job_t *of_all, i64 begin, i64 end, int max, int relu) {
    OWN_COPY(job, w, of_all);
    i64 width = w->cols * w->ch, ch = w->ch;
    for (i64 q = begin; q < end; q++) {
        i64 image = q / w->out_rows, r = q % w->out_rows;
        real *top = job->dx + (image * w->rows + 2 * r) * width, *bottom = top + width;
        for (i64 c = 0; c < w->out_cols; c++) {
            i64 at = (q * w->out_cols + c) * ch;
            i64 readable = job->outputs - at, writable = width - (2 * c + 1) * ch;
            i64 pixel = 2 * c * ch;
#define VECTOR(t, kept) \
    spread_vector(job, at + (t), top + pixel + (t), bottom + pixel + (t), kept, max, relu)
#define SCALAR(t) spread_scalar(job, at + (t), top + pixel + (t), bottom + pixel + (t), max, relu)
            FOR_CHANNELS(ch, readable, writable, VECTOR, SCALAR)
#undef VECTOR
#undef SCALAR
        }
        /* an odd column, and below the last window an odd row, were seen by no window */
        i64 seen = 2 * w->out_cols * ch;
        memset(top + seen, 0, (width - seen) * sizeof(real));
        memset(bottom + seen, 0, (width - seen) * sizeof(real));
        if (r == w->out_rows - 1)
            memset(bottom + width, 0, (w->rows - 2 * w->out_rows) * width * sizeof(real));
    }
}

static void spread_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    if (!job->winners)
        spread_rows(job, begin, end, 0, 0);
    else if (!job->y)
        spread_rows(job, begin, end, 1, 0);
    else
        spread_rows(job, begin, end, 1, 1);
}

/* ------------------------------------------------- max of windows of 3 x 3, two apart: cells
 *
 * With the padding counted, pixels (2 r, 2 c) to (2 r + 1, 2 c + 1) are a cell. No other windows than
 * (r, c), its left one, its upper one and the one between those see it, the last ones only what is
 * even. So a pixel is written once, whatever it won.
 */

/* A window's gradient and winner, of VW channels. */
typedef struct {
    vec g;
    mask winner;
} output_t;

/* Window `col` of a line of outputs, counted over all images; nothing where there is none. */
INLINE output_t output_at(const job_t *job, i64 line, i64 col, i64 channel, int relu) {
    output_t none = {splat(0), splat_bits(-1)};
    if (line < 0 || col < 0 || col >= job->w->out_cols) return none;
    i64 at = (line * job->w->out_cols + col) * job->w->ch + channel;
    return (output_t){incoming(job, at, relu), load_winners(job->winners + at)};
}

INLINE vec part(output_t o, int tap) {
    return (vec)((o.winner == splat_bits(tap)) & (mask)o.g);
}

INLINE void write_pixel(real *row, i64 at, vec g) {
    if (!row) return;
    store(row + at, g);
    soon_written(row + at);
}

/* A row of cells: `here` and `above` are lines of outputs, or -1; `top` and `bottom` rows of pixels,
 * or NULL. A pixel's gradients are added in the order of the taps. */
INLINE void cell_row(const job_t *job, i64 here, i64 above, real *top, real *bottom, i64 channel,
                     int relu) {
    const window_t *w = job->w;
    i64 first = w->left / 2, last = (w->cols - 1 + w->left) / 2;
    output_t left = output_at(job, here, first - 1, channel, relu);
    output_t upper_left = output_at(job, above, first - 1, channel, relu);
    for (i64 c = first; c <= last; c++) {
        output_t own = output_at(job, here, c, channel, relu);
        output_t upper = output_at(job, above, c, channel, relu);
        i64 x = 2 * c - w->left, at = x * w->ch + channel;
        vec zero = splat(0);
        if (x >= 0) {
            write_pixel(top, at, zero + part(own, 0) + part(left, 2) + part(upper, 6) +
                                     part(upper_left, 8));
            write_pixel(bottom, at, zero + part(own, 3) + part(left, 5));
        }
        if (x + 1 < w->cols) {
            write_pixel(top, at + w->ch, zero + part(own, 1) + part(upper, 7));
            write_pixel(bottom, at + w->ch, zero + part(own, 4));
        }
        left = own;
        upper_left = upper;
    }
}

static i64 cells(const window_t *w) { return (w->rows - 1 + w->top) / 2 - w->top / 2 + 1; }

/* Rows of cells [begin, end), counted over all images. */
INLINE void cell_rows(const job_t *of_all, i64 begin, i64 end, int relu) {
    OWN_COPY(job, w, of_all);
    i64 width = w->cols * w->ch, count = cells(w);
    for (i64 q = begin; q < end; q++) {
        i64 image = q / count, r = q % count + w->top / 2, y = 2 * r - w->top;
        i64 line = image * w->out_rows + r;
        real *top = job->dx + (image * w->rows + y) * width;
        for (i64 k = 0; k < w->ch; k += VW)
            cell_row(job, r < w->out_rows ? line : -1, r > 0 ? line - 1 : -1, y >= 0 ? top : NULL,
                     y + 1 < w->rows ? top + width : NULL, k, relu);
    }
}

static void cell_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    job->y ? cell_rows(job, begin, end, 1) : cell_rows(job, begin, end, 0);
}

static int has_cells(const job_t *job) {
    const window_t *w = job->w;
    return job->winners && w->ch % VW == 0 && w->fr == 3 && w->fc == 3 && w->sr == 2 &&
           w->sc == 2 && w->dr == 1 && w->dc == 1;
}

/* ------------------------------------------------------------------- overlapping windows, max */

/* VW channels of an output, added to the pixel of its window that won. */
INLINE void add_vector(const job_t *job, i64 at, real *first, i64 i0, i64 i1, i64 j0, i64 j1,
                       int relu) {
    const window_t *w = job->w;
    vec g = incoming(job, at, relu);
    mask winner = load_winners(job->winners + at);
    for (i64 i = i0; i < i1; i++)
        for (i64 j = j0; j < j1; j++) {
            real *to = first + (i * w->dr * w->cols + j * w->dc) * w->ch;
            mask won = winner == splat_bits((bits)(i * w->fc + j));
            store(to, load(to) + (vec)(won & (mask)g));
        }
}

/* Images [begin, end). The last window first: a pixel's gradients are added in the order of its
 * taps, as above. */
INLINE void add_images(const job_t *job, i64 fr, i64 fc, i64 begin, i64 end, int relu) {
    const window_t *w = job->w;
    i64 size = w->rows * w->cols * w->ch, outputs = w->out_rows * w->out_cols * w->ch;
    for (i64 n = begin; n < end; n++) {
        real *image = job->dx + n * size;
        memset(image, 0, size * sizeof(real));
        for (i64 r = w->out_rows - 1; r >= 0; r--) {
            i64 y = r * w->sr - w->top, i0, i1;
            taps_inside(y, w->dr, w->fr, w->rows, &i0, &i1);
            for (i64 c = w->out_cols - 1; c >= 0; c--) {
                i64 x = c * w->sc - w->left, j0, j1;
                taps_inside(x, w->dc, w->fc, w->cols, &j0, &j1);
                i64 at = n * outputs + (r * w->out_cols + c) * w->ch;
                for (i64 k = 0; k < w->ch; k += VW) {
                    real *first = image + (y * w->cols + x) * w->ch + k;
                    if (fr && i1 - i0 == fr && j1 - j0 == fc)
                        add_vector(job, at + k, first, 0, fr, 0, fc, relu);
                    else
                        add_vector(job, at + k, first, i0, i1, j0, j1, relu);
                }
            }
        }
    }
}

static void add_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    int three = job->w->fr == 3 && job->w->fc == 3;
    (void)share;
    if (job->y)
        three ? add_images(job, 3, 3, begin, end, 1) : add_images(job, 0, 0, begin, end, 1);
    else
        three ? add_images(job, 3, 3, begin, end, 0) : add_images(job, 0, 0, begin, end, 0);
}

/* Whether every thread has images of its own, in whole vectors, and an image stays in the cache;
 * then each winner is read once, not by each pixel that its window sees. */
static int adds(const job_t *job) {
    const window_t *w = job->w;
    return job->winners && w->ch % VW == 0 && w->n >= gl_shares(INT64_MAX, 1) &&
           w->rows * w->cols * w->ch * (i64)sizeof(real) <= IMAGE_BYTES;
}

/* ------------------------------------------------------------------------------- entry points */

static int pool_backward(job_t *job) {
    const window_t *w = job->w;
    i64 row = w->cols * w->ch;
    job->share = (real)1 / (real)(w->fr * w->fc);
    job->outputs = w->n * w->out_rows * w->out_cols * w->ch;
    if (w->fr == 2 && w->fc == 2 && w->sr == 2 && w->sc == 2 && w->dr == 1 && w->dc == 1 &&
        w->top == 0 && w->left == 0 && w->out_rows == w->rows / 2 && w->out_cols == w->cols / 2) {
        gl_pieces(w->n * w->out_rows, 1 + 32768 / max_i64(1, 2 * row), PIECES, spread_task, job);
        return 0;
    }
    if (has_cells(job)) {
        gl_pieces(w->n * cells(w), 1 + 32768 / max_i64(1, 2 * row), PIECES, cell_task, job);
        return 0;
    }
    if (adds(job)) {
        gl_pieces(w->n, 1 + 32768 / max_i64(1, w->rows * row), PIECES, add_task, job);
        return 0;
    }
    /* every window has at most fc views */
    i64 most = w->out_cols * w->fc;
    i64 *starts = gl_scratch(0, (w->cols + 1) * sizeof(i64) + (most + w->fc) * sizeof(view_t));
    if (!starts) return 1;
    view_t *views = (view_t *)(starts + w->cols + 1);
    starts[0] = 0;
    for (i64 c = 0; c < w->cols; c++)
        starts[c + 1] = starts[c] + find_views(c + w->left, w->fc, w->dc, w->sc, w->out_cols,
                                               views + starts[c]);
    job->starts = starts;
    job->views = views;
    i64 reads = max_i64(1, row * w->fr * w->fc / (w->sr * w->sc));
    gl_pieces(w->n * w->rows, 1 + 32768 / reads, PIECES, gather_task, job);
    return 0;
}

/* dx[pixel] = sum of dy over the windows that it won; with y given, of dy * (y > 0): the chain rule
 * through a ReLU that came before the pooling. Returns nonzero without memory. */
EXPORT int GL(gl_max_pool_backward)(const real *dy, const uint8_t *winners, const real *y, real *dx,
                                    const window_t *w) {
    job_t job = {.w = w, .dy = dy, .y = y, .winners = winners, .dx = dx};
    return pool_backward(&job);
}

EXPORT int GL(gl_avg_pool_backward)(const real *dy, real *dx, const window_t *w) {
    job_t job = {.w = w, .dy = dy, .dx = dx};
    return pool_backward(&job);
}
