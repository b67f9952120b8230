/* Softmax over rows, alone and with the cross-entropy of labels. A row is read three times at most,
 * from cache after the first. */
#include <math.h>

#include "mathfun.h"
#include "recorded.h"

typedef struct {
    const real *x, *y;
    const i64 *labels;
    real *out, *losses;
    i64 width;
    real scale;
} job_t;

/* The largest of a row; what it is in a row with NaN does not matter, see exponentials. */
INLINE real row_max(const real *x, i64 width) {
    if (width < VW) {
        real most = x[0];
        for (i64 k = 1; k < width; k++) most = x[k] > most ? x[k] : most;
        return most;
    }
    vec last = load(x + width - VW); /* overlaps the one before it */
    vec most[4] = {last, last, last, last};
    i64 k = 0;
    for (; k + 4 * VW <= width; k += 4 * VW) /* four, since each waits for its last comparison */
        for (int i = 0; i < 4; i++) {
            vec v = load(x + k + i * VW);
            most[i] = select(v > most[i], v, most[i]);
        }
    for (; k + VW <= width; k += VW) {
        vec v = load(x + k);
        most[0] = select(v > most[0], v, most[0]);
    }
    most[0] = select(most[1] > most[0], most[1], most[0]);
    most[2] = select(most[3] > most[2], most[3], most[2]);
    return max_lanes(select(most[2] > most[0], most[2], most[0]));
}

/* y = exp(x - most), and their sum. One NaN, or plus infinity as the maximum, makes the sum NaN,
 * and so the whole row. */
INLINE real exponentials(const real *x, real *y, i64 width, real most) {
    if (width < VW) {
        real lanes[VEC_BYTES / sizeof(real)];
        for (i64 k = 0; k < VW; k++) lanes[k] = k < width ? x[k] : -(real)INFINITY;
        vec e = vector_exp_below_zero(load(lanes) - splat(most));
        store_part(y, e, width);
        return sum_lanes(e);
    }
    vec sums = splat(0);
    i64 k = 0;
    for (; k + VW <= width; k += VW) {
        vec e = vector_exp_below_zero(load(x + k) - splat(most));
        store(y + k, e);
        sums = sums + e;
        soon(x + k);
        soon_written(y + k);
    }
    if (k < width) { /* the last vector again, and what it has more counts */
        vec e = vector_exp_below_zero(load(x + width - VW) - splat(most));
        store(y + width - VW, e);
        sums = sums + (vec)((mask)e & (lane_numbers() >= splat_bits((bits)(VW - (width - k)))));
    }
    return sum_lanes(sums);
}

INLINE void multiply(real *y, i64 width, real factor) {
    i64 k = 0;
    for (; k + VW <= width; k += VW) store(y + k, load(y + k) * splat(factor));
    for (; k < width; k++) y[k] *= factor;
}

/* loss = log sum_j exp(x_j) - x_label, NaN for a label that is no class */
INLINE real loss(const real *x, i64 width, i64 label, real most, real sum) {
    if (label < 0 || label >= width) return (real)NAN;
#ifdef GL_DOUBLE
    return log(sum) - (x[label] - most);
#else
    return logf(sum) - (x[label] - most);
#endif
}

static i64 grain(i64 width) { return 1 + 8192 / max_i64(1, width); }

/* ------------------------------------------------------------------------------------- softmax */

static void forward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    (void)share;
    for (i64 row = begin; row < end; row++) {
        const real *x = job->x + row * width;
        real *y = job->out + row * width, most = row_max(x, width);
        real sum = exponentials(x, y, width, most);
        if (job->losses) job->losses[row] = loss(x, width, job->labels[row], most, sum);
        multiply(y, width, 1 / sum);
    }
}

/* y = exp(x - max) / sum of them, row by row; width >= 1. With labels the losses too. */
EXPORT void GL(gl_softmax_forward)(const real *x, const i64 *labels, real *y, real *losses,
                                   i64 rows, i64 width) {
    job_t job = {.x = x, .labels = labels, .out = y, .losses = losses, .width = width};
    gl_pieces(rows, grain(width), PIECES, forward_task, &job);
}

static void backward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    (void)share;
    for (i64 row = begin; row < end; row++) {
        const real *dy = job->x + row * width, *y = job->y + row * width;
        real *dz = job->out + row * width;
        vec sums = splat(0);
        i64 k = 0;
        for (; k + VW <= width; k += VW) sums = sums + load(dy + k) * load(y + k);
        real sum = sum_lanes(sums);
        for (; k < width; k++) sum += dy[k] * y[k];
        for (k = 0; k + VW <= width; k += VW)
            store(dz + k, load(y + k) * (load(dy + k) - splat(sum)));
        for (; k < width; k++) dz[k] = y[k] * (dy[k] - sum);
    }
}

/* dz = y (dy - <dy, y>), row by row */
EXPORT void GL(gl_softmax_backward)(const real *dy, const real *y, real *dz, i64 rows, i64 width) {
    job_t job = {.x = dy, .y = y, .out = dz, .width = width};
    gl_pieces(rows, grain(width), PIECES, backward_task, &job);
}

/* ------------------------------------------------------------------------------- cross-entropy */

static void subtract_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    (void)share;
    for (i64 row = begin; row < end; row++) {
        const real *p = job->x + row * width;
        real *dx = job->out + row * width;
        i64 k = 0, label = job->labels[row];
        for (; k + VW <= width; k += VW) {
            store(dx + k, load(p + k) * splat(job->scale));
            soon(p + k);
            soon_written(dx + k);
        }
        for (; k < width; k++) dx[k] = p[k] * job->scale;
        if (label >= 0 && label < width) dx[label] = (p[label] - 1) * job->scale;
    }
}

/* dx = (p - onehot(label)) * scale */
EXPORT void GL(gl_cross_entropy_backward)(const real *p, const i64 *labels, real *dx, i64 rows,
                                          i64 width, real scale) {
    job_t job = {.x = p, .labels = labels, .out = dx, .width = width, .scale = scale};
    gl_pieces(rows, 4 * grain(width), PIECES, subtract_task, &job);
}

static void both_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    (void)share;
    for (i64 row = begin; row < end; row++) {
        const real *x = job->x + row * width;
        i64 label = job->labels[row];
        real *dx = job->out + row * width, most = row_max(x, width);
        real sum = exponentials(x, dx, width, most), inverse = 1 / sum;
        job->losses[row] = loss(x, width, label, most, sum);
        if (label >= 0 && label < width) { /* (p - 1) scale, as above: subtracted first */
            real p = dx[label] * inverse;
            multiply(dx, width, inverse * job->scale);
            dx[label] = (p - 1) * job->scale;
        } else {
            multiply(dx, width, inverse * job->scale);
        }
    }
}

/* The losses and the gradient of scale * sum of them in one pass. */
EXPORT void GL(gl_cross_entropy_both)(const real *x, const i64 *labels, real *losses, real *dx,
                                      i64 rows, i64 width, real scale) {
    job_t job = {.x = x, .labels = labels, .out = dx, .losses = losses, .width = width,
                 .scale = scale};
    gl_pieces(rows, grain(width), PIECES, both_task, &job);
}
