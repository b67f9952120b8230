/* Max and average pooling, forward: one output pixel at a time, a vector of channels at a time, its
 * taps in row-major order. */
#include "pool.h"
#include "recorded.h"

enum { MAX, AVERAGE };

typedef struct {
    const window_t *w;
    const real *x, *x_end;
    real *y;
    uint8_t *winners;
    real share; /* of each tap in an average */
    int kind;
} job_t;

/* VW channels of one output pixel. `x` is the first tap inside the image, number `number` of the
 * window; `rows` x `cols` taps are inside. A tap wins if it is greater, or NaN where none was. */
INLINE void pool_vector(const job_t *job, int kind, const real *x, i64 rows, i64 cols, i64 number,
                        i64 at, i64 kept) {
    const window_t *w = job->w;
    i64 down = w->dr * w->cols * w->ch, right = w->dc * w->ch;
    vec best = load(x);
    soon(x);
    mask winner = splat_bits((bits)number);
    for (i64 i = 0; i < rows; i++) {
        for (i64 j = 0; j < cols; j++) {
            if (i == 0 && j == 0) continue;
            vec v = load(x + i * down + j * right);
            soon(x + i * down + j * right);
            if (kind == AVERAGE) {
                best = best + v;
            } else {
                mask wins = ~(v <= best) & (best == best);
                best = select(wins, v, best);
                mask tap = splat_bits((bits)(number + i * w->fc + j));
                winner = (wins & tap) | (~wins & winner);
            }
        }
    }
    if (kind == AVERAGE) best = best * splat(job->share);
    store_lanes(job->y + at, best, kept);
    if (kind == MAX) store_winners(job->winners + at, winner, kept);
}

/* One channel, the same way. */
INLINE void pool_scalar(const job_t *job, int kind, const real *x, i64 rows, i64 cols, i64 number,
                        i64 at) {
    const window_t *w = job->w;
    i64 down = w->dr * w->cols * w->ch, right = w->dc * w->ch, winner = number;
    real best = x[0];
    for (i64 i = 0; i < rows; i++) {
        for (i64 j = 0; j < cols; j++) {
            if (i == 0 && j == 0) continue;
            real v = x[i * down + j * right];
            if (kind == AVERAGE) {
                best += v;
            } else if (!(v <= best) && best == best) {
                best = v;
                winner = number + i * w->fc + j;
            }
        }
    }
    if (kind == AVERAGE) best *= job->share;
    job->y[at] = best;
    if (kind == MAX) job->winners[at] = (uint8_t)winner;
}

/* One output pixel; `end` is where the outputs written after it end. */
INLINE void pool_pixel(const job_t *job, int kind, const real *x, i64 rows, i64 cols, i64 number,
                       i64 at, i64 end) {
    const window_t *w = job->w;
    const real *last = x + (rows - 1) * w->dr * w->cols * w->ch + (cols - 1) * w->dc * w->ch;
#define VECTOR(c, kept) pool_vector(job, kind, x + (c), rows, cols, number, at + (c), kept)
#define SCALAR(c) pool_scalar(job, kind, x + (c), rows, cols, number, at + (c))
    FOR_CHANNELS(w->ch, job->x_end - last, end - at, VECTOR, SCALAR)
#undef VECTOR
#undef SCALAR
}

/* Rows of outputs [begin, end), counted over all images. `fr` and `fc` are the kernel's size where
 * that is to be a constant, else 0. */
INLINE void pool_rows(const job_t *of_all, int kind, i64 fr, i64 fc, i64 begin, i64 end) {
    OWN_COPY(job, w, of_all);
    /* output columns whose window has no column in the padding */
    i64 free_begin = ceil_div(w->left, w->sc);
    i64 free_end = (w->cols + w->left - (w->fc - 1) * w->dc - 1 + w->sc) / w->sc;
    i64 last = end * w->out_cols * w->ch;
    for (i64 q = begin; q < end; q++) {
        i64 image = q / w->out_rows, y = (q % w->out_rows) * w->sr - w->top;
        i64 i0, i1;
        taps_inside(y, w->dr, w->fr, w->rows, &i0, &i1);
        for (i64 c = 0; c < w->out_cols; c++) {
            i64 x = c * w->sc - w->left, at = (q * w->out_cols + c) * w->ch;
            i64 j0 = 0, j1 = w->fc;
            if (c < free_begin || c >= free_end)
                taps_inside(x, w->dc, w->fc, w->cols, &j0, &j1);
            if (i0 >= i1 || j0 >= j1) { /* all padding, an average of zeros */
                memset(job->y + at, 0, w->ch * sizeof(real));
                continue;
            }
            i64 pixel = (image * w->rows + y + i0 * w->dr) * w->cols + x + j0 * w->dc;
            const real *first = job->x + pixel * w->ch;
            if (fr && i1 - i0 == fr && j1 - j0 == fc)
                pool_pixel(job, kind, first, fr, fc, 0, at, last);
            else
                pool_pixel(job, kind, first, i1 - i0, j1 - j0, i0 * w->fc + j0, at, last);
        }
    }
}

static void pool_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 fr = job->w->fr, fc = job->w->fc;
    (void)share;
    if (job->kind == AVERAGE) {
        if (fr == 2 && fc == 2)
            pool_rows(job, AVERAGE, 2, 2, begin, end);
        else
            pool_rows(job, AVERAGE, 0, 0, begin, end);
    } else {
        if (fr == 2 && fc == 2)
            pool_rows(job, MAX, 2, 2, begin, end);
        else if (fr == 3 && fc == 3)
            pool_rows(job, MAX, 3, 3, begin, end);
        else
            pool_rows(job, MAX, 0, 0, begin, end);
    }
}

static void pool(const real *x, real *y, uint8_t *winners, const window_t *w, int kind) {
    job_t job = {.w = w, .x = x, .x_end = x + w->n * w->rows * w->cols * w->ch, .y = y,
                 .winners = winners, .share = (real)1 / (real)(w->fr * w->fc), .kind = kind};
    i64 reads = max_i64(1, w->out_cols * w->ch * w->fr * w->fc); /* of one row of outputs */
    gl_pieces(w->n * w->out_rows, 1 + 32768 / reads, PIECES, pool_task, &job);
}

/* y, winners (n, out_rows, out_cols, ch); a winner is i * fc + j, at most 256 taps. */
EXPORT void GL(gl_max_pool_forward)(const real *x, real *y, uint8_t *winners, const window_t *w) {
    pool(x, y, winners, w, MAX);
}

EXPORT void GL(gl_avg_pool_forward)(const real *x, real *y, const window_t *w) {
    pool(x, y, NULL, w, AVERAGE);
}
