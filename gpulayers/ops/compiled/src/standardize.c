/* Rows of mean 0 and variance 1: layer normalisation, with its scaler and intercept or without, and
 * group normalisation where a group's elements lie together. A row is read three times, from cache
 * after the first. */
#include <math.h>

#include "mathfun.h"

#define BLOCK 2048 /* elements whose sum is taken in the arrays' type; blocks are added in double */
#define TILE 4

typedef struct {
    const real *x, *x_hat;
    real *out, *inv_std;
    const real *given; /* inv_std, for the gradient */
    const real *scaler, *intercept; /* of each element of a row, in layer normalisation */
    real *y;
    real *partial;     /* of each share: the sums of dy * x_hat and dy over some rows */
    double *sums;      /* of each share: over all its rows */
    i64 width;
    real eps;
} job_t;

/* The sum over a row of d = x - high - low, or with `product` of d^2, or of d * other if given. */
INLINE double row_sum(const real *x, const real *other, i64 width, real high, real low,
                      int product) {
    double sum = 0;
    for (i64 block = 0; block < width; block += BLOCK) {
        i64 end = min_i64(width, block + BLOCK), k = block;
        vec sums[TILE] = {splat(0), splat(0), splat(0), splat(0)};
        for (; k + TILE * VW <= end; k += TILE * VW) {
            for (int v = 0; v < TILE; v++) {
                vec d = load(x + k + v * VW) - splat(high) - splat(low);
                if (product) d = d * (other ? load(other + k + v * VW) : d);
                sums[v] = sums[v] + d;
            }
        }
        real rest = 0;
        for (; k < end; k++) {
            real d = x[k] - high - low;
            rest += product ? d * (other ? other[k] : d) : d;
        }
        sum += (double)sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + (double)rest;
    }
    return sum;
}

static i64 grain(i64 width) { return 1 + 16384 / max_i64(1, width); }

/* ------------------------------------------------------------------------------------- forward */

INLINE void forward_rows(const job_t *job, i64 begin, i64 end, int affine) {
    i64 width = job->width;
    const real *scaler = job->scaler, *intercept = job->intercept;
    for (i64 row = begin; row < end; row++) {
        const real *x = job->x + row * width;
        real *x_hat = job->out + row * width, *y = affine ? job->y + row * width : NULL;
        /* summed from the first element, and kept in two parts: exact far from zero, too */
        real pivot = x[0] - x[0] == 0 ? x[0] : 0;
        double exact = (double)pivot + row_sum(x, NULL, width, pivot, 0, 0) / (double)width;
        real mean = (real)exact, rest = (real)(exact - (double)mean);
        double var = row_sum(x, NULL, width, mean, rest, 1) / (double)width;
        real inv_std = (real)(1 / sqrt(var + (double)job->eps));
        job->inv_std[row] = inv_std;
        i64 k = 0;
        for (; k + VW <= width; k += VW) {
            vec hat = (load(x + k) - splat(mean) - splat(rest)) * splat(inv_std);
            store(x_hat + k, hat);
            if (affine) store(y + k, load(scaler + k) * hat + load(intercept + k));
        }
        for (; k < width; k++) {
            x_hat[k] = (x[k] - mean - rest) * inv_std;
            if (affine) y[k] = scaler[k] * x_hat[k] + intercept[k];
        }
    }
}

static void forward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    if (job->y)
        forward_rows(job, begin, end, 1);
    else
        forward_rows(job, begin, end, 0);
}

/* x_hat = (x - mean) * inv_std, inv_std = 1 / sqrt(var + eps), row by row; width >= 1 */
EXPORT void GL(gl_standardize_forward)(const real *x, real *x_hat, real *inv_std, i64 rows,
                                       i64 width, real eps) {
    job_t job = {.x = x, .out = x_hat, .inv_std = inv_std, .width = width, .eps = eps};
    gl_pieces(rows, grain(width), PIECES, forward_task, &job);
}

/* The same, and y = scaler * x_hat + intercept. */
EXPORT void GL(gl_layernorm_forward)(const real *x, const real *scaler, const real *intercept,
                                     real *y, real *x_hat, real *inv_std, i64 rows, i64 width,
                                     real eps) {
    job_t job = {.x = x, .scaler = scaler, .intercept = intercept, .y = y, .out = x_hat,
                 .inv_std = inv_std, .width = width, .eps = eps};
    gl_pieces(rows, grain(width), PIECES, forward_task, &job);
}

/* ------------------------------------------------------------------------------------ backward */

static void backward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    (void)share;
    for (i64 row = begin; row < end; row++) {
        const real *dy = job->x + row * width, *x_hat = job->x_hat + row * width;
        real *dx = job->out + row * width, inv_std = job->given[row];
        real shift = (real)(row_sum(dy, NULL, width, 0, 0, 0) / (double)width);
        real slope = (real)(row_sum(dy, x_hat, width, 0, 0, 1) / (double)width);
        i64 k = 0;
        for (; k + VW <= width; k += VW) {
            vec inner = load(dy + k) - splat(shift) - load(x_hat + k) * splat(slope);
            store(dx + k, inner * splat(inv_std));
        }
        for (; k < width; k++) dx[k] = (dy[k] - shift - x_hat[k] * slope) * inv_std;
    }
}

/* dx = inv_std * (dx_hat - mean dx_hat - x_hat * mean (dx_hat x_hat)), row by row */
EXPORT void GL(gl_standardize_backward)(const real *dx_hat, const real *x_hat,
                                        const real *inv_std, real *dx, i64 rows, i64 width) {
    job_t job = {.x = dx_hat, .x_hat = x_hat, .given = inv_std, .out = dx, .width = width};
    gl_pieces(rows, grain(width), PIECES, backward_task, &job);
}

/* ------------------------------------------------------------- backward of layer normalisation */

#define ROWS 64 /* whose column sums are taken in the arrays' type */

/* Adds a row to the column sums; *first, *second: the sums of g = dy * scaler, and of g * x_hat. */
INLINE void add_row(const job_t *job, const real *dy, const real *x_hat, real *dscaler,
                    real *dintercept, double *first, double *second) {
    i64 width = job->width;
    const real *scaler = job->scaler;
    for (i64 block = 0; block < width; block += BLOCK) {
        i64 end = min_i64(width, block + BLOCK), k = block;
        vec s = splat(0), q = splat(0);
        for (; k + VW <= end; k += VW) {
            vec d = load(dy + k), h = load(x_hat + k), g = d * load(scaler + k);
            s = s + g;
            q = q + g * h;
            store(dscaler + k, load(dscaler + k) + d * h);
            store(dintercept + k, load(dintercept + k) + d);
        }
        real rest = 0, rest2 = 0;
        for (; k < end; k++) {
            real g = dy[k] * scaler[k];
            rest += g;
            rest2 += g * x_hat[k];
            dscaler[k] += dy[k] * x_hat[k];
            dintercept[k] += dy[k];
        }
        *first += (double)sum_lanes(s) + (double)rest;
        *second += (double)sum_lanes(q) + (double)rest2;
    }
}

static void flush(real *partial, double *sums, i64 n) {
    for (i64 k = 0; k < n; k++) {
        sums[k] += (double)partial[k];
        partial[k] = 0;
    }
}

static void layernorm_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    const real *scaler = job->scaler;
    real *partial = job->partial + 2 * share * width;
    double *sums = job->sums + 2 * share * width;
    for (i64 row = begin; row < end; row++) {
        const real *dy = job->x + row * width, *x_hat = job->x_hat + row * width;
        real *dx = job->out + row * width, inv_std = job->given[row];
        double first = 0, second = 0;
        add_row(job, dy, x_hat, partial, partial + width, &first, &second);
        if ((row - begin) % ROWS == ROWS - 1 || row == end - 1) flush(partial, sums, 2 * width);
        real shift = (real)(first / (double)width), slope = (real)(second / (double)width);
        i64 k = 0;
        for (; k + VW <= width; k += VW) {
            vec inner = load(dy + k) * load(scaler + k) - splat(shift);
            store(dx + k, (inner - load(x_hat + k) * splat(slope)) * splat(inv_std));
        }
        for (; k < width; k++)
            dx[k] = (dy[k] * scaler[k] - shift - x_hat[k] * slope) * inv_std;
    }
}

/* dx as above of dy * scaler; dscaler = sum dy * x_hat and dintercept = sum dy over the rows.
 * Returns nonzero without memory. */
EXPORT int GL(gl_layernorm_backward)(const real *dy, const real *x_hat, const real *scaler,
                                     const real *inv_std, real *dx, real *dscaler,
                                     real *dintercept, i64 rows, i64 width) {
    job_t job = {.x = dy, .x_hat = x_hat, .scaler = scaler, .given = inv_std, .out = dx,
                 .width = width};
    int shares = gl_shares(rows, grain(width));
    job.sums = gl_scratch(0, 2 * shares * width * sizeof(double));
    job.partial = gl_scratch(1, 2 * shares * width * sizeof(real));
    if (!job.sums || !job.partial) return 1;
    memset(job.sums, 0, 2 * shares * width * sizeof(double));
    memset(job.partial, 0, 2 * shares * width * sizeof(real));
    gl_parallel(rows, grain(width), layernorm_task, &job);
    for (int share = 1; share < shares; share++)
        for (i64 k = 0; k < 2 * width; k++) job.sums[k] += job.sums[2 * share * width + k];
    for (i64 k = 0; k < width; k++) {
        dscaler[k] = (real)job.sums[k];
        dintercept[k] = (real)job.sums[width + k];
    }
    return 0;
}
