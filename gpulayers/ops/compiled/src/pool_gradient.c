/* Max and average pooling, backward. Every pixel gathers from the windows that see it, in the order
 * of their taps, so nothing is added to memory and threads share no pixel. */
#include "pool.h"

/* A window that sees a row (or column) of the image: its number, and with which tap. */
typedef struct {
    i64 out, tap;
} view_t;

typedef struct {
    const window_t *w;
    const real *dy, *y; /* y: outputs, where a ReLU before the pooling is undone too, else NULL */
    const uint8_t *winners; /* NULL for averages */
    real *dx;
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

/* The gradient of outputs at `at`, of those that tap `tap` won. */
INLINE vec routed(const job_t *job, i64 at, i64 tap, i64 lanes, int max, int relu) {
    vec g = load_lanes(job->dy + at, lanes);
    if (!max) return g * splat((real)1 / (real)(job->w->fr * job->w->fc));
    if (relu)
        g = g * select(load_lanes(job->y + at, lanes) > splat(0), splat(1), splat(0));
    mask won = load_winners(job->winners + at, lanes) == splat_bits((bits)tap);
    return (vec)(won & (mask)g);
}

INLINE void gather_lanes(const job_t *job, const view_t *row, i64 rows, const view_t *col, i64 cols,
                         i64 image, i64 channel, real *dx, i64 lanes, int max, int relu) {
    const window_t *w = job->w;
    vec sum = splat(0);
    for (i64 i = 0; i < rows; i++) {
        i64 line = (image * w->out_rows + row[i].out) * w->out_cols;
        for (i64 j = 0; j < cols; j++) {
            i64 at = (line + col[j].out) * w->ch + channel;
            sum = sum + routed(job, at, row[i].tap * w->fc + col[j].tap, lanes, max, relu);
        }
    }
    store_lanes(dx, sum, lanes);
}

/* Rows of pixels [begin, end), counted over all images. */
INLINE void gather_rows(const job_t *job, i64 begin, i64 end, int max, int relu) {
    const window_t *w = job->w;
    view_t row[256]; /* at most one view a tap; more taps than that go another way */
    for (i64 q = begin; q < end; q++) {
        i64 image = q / w->rows;
        i64 rows = find_views(q % w->rows + w->top, w->fr, w->dr, w->sr, w->out_rows, row);
        real *line = job->dx + q * w->cols * w->ch;
        for (i64 c = 0; c < w->cols; c++) {
            const view_t *col = job->views + job->starts[c];
            i64 cols = job->starts[c + 1] - job->starts[c];
            if (rows == 0 || cols == 0) {
                memset(line + c * w->ch, 0, w->ch * sizeof(real));
                continue;
            }
            /* lanes that may be read beyond the last output seen, and written beyond this pixel */
            i64 last = (image * w->out_rows + row[0].out) * w->out_cols + col[0].out;
            i64 room = min_i64(job->outputs - last * w->ch, (w->cols - c) * w->ch);
            real *dx = line + c * w->ch;
#define RUN(t, lanes) \
    gather_lanes(job, row, rows, col, cols, image, t, dx + (t), lanes, max, relu)
            FOR_CHANNELS(w->ch, room, RUN)
#undef RUN
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

INLINE void spread_lanes(const job_t *job, i64 at, real *top, real *bottom, i64 lanes, int max,
                         int relu) {
    i64 ch = job->w->ch;
    vec g = load_lanes(job->dy + at, lanes);
    mask winner = splat_bits(0);
    if (max)
        winner = load_winners(job->winners + at, lanes);
    else
        g = g * splat((real)0.25);
    if (relu)
        g = g * select(load_lanes(job->y + at, lanes) > splat(0), splat(1), splat(0));
    /* from left to right, as what is written beyond a pixel belongs to the next one */
    for (int tap = 0; tap < 4; tap++) {
        mask won = max ? winner == splat_bits(tap) : splat_bits(-1);
        store_lanes((tap < 2 ? top : bottom) + tap % 2 * ch, (vec)(won & (mask)g), lanes);
    }
}

/* Rows of outputs [begin, end), counted over all images; each writes two rows of pixels. */
INLINE void spread_rows(const job_t *job, i64 begin, i64 end, int max, int relu) {
    const window_t *w = job->w;
    i64 width = w->cols * w->ch, ch = w->ch;
    for (i64 q = begin; q < end; q++) {
        i64 image = q / w->out_rows, r = q % w->out_rows;
        real *top = job->dx + (image * w->rows + 2 * r) * width, *bottom = top + width;
        for (i64 c = 0; c < w->out_cols; c++) {
            i64 at = (q * w->out_cols + c) * ch;
            i64 room = min_i64(job->outputs - at, width - (2 * c + 1) * ch);
            i64 pixel = 2 * c * ch;
#define RUN(t, lanes) \
    spread_lanes(job, at + (t), top + pixel + (t), bottom + pixel + (t), lanes, max, relu)
            FOR_CHANNELS(ch, room, RUN)
#undef RUN
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

/* ------------------------------------------------------------------------------- entry points */

static int pool_backward(job_t *job) {
    const window_t *w = job->w;
    i64 row = w->cols * w->ch;
    job->outputs = w->n * w->out_rows * w->out_cols * w->ch;
    if (w->fr == 2 && w->fc == 2 && w->sr == 2 && w->sc == 2 && w->dr == 1 && w->dc == 1 &&
        w->top == 0 && w->left == 0 && w->out_rows == w->rows / 2 && w->out_cols == w->cols / 2) {
        gl_parallel(w->n * w->out_rows, 1 + 32768 / max_i64(1, 2 * row), spread_task, job);
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
    gl_parallel(w->n * w->rows, 1 + 32768 / reads, gather_task, job);
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
