/* Rows of mean 0 and variance 1: layer normalisation, and group normalisation where a group's
 * elements lie together. A row is read three times, from cache after the first. */
#include <math.h>

#include "mathfun.h"

#define BLOCK 2048 /* elements whose sum is taken in the arrays' type; blocks are added in double */
#define TILE 4

typedef struct {
    const real *x, *x_hat;
    real *out, *inv_std;
    const real *given; /* inv_std, for the gradient */
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

static void forward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 width = job->width;
    (void)share;
    for (i64 row = begin; row < end; row++) {
        const real *x = job->x + row * width;
        real *x_hat = job->out + row * width;
        /* summed from the first element, and kept in two parts: exact far from zero, too */
        real pivot = x[0] - x[0] == 0 ? x[0] : 0;
        double exact = (double)pivot + row_sum(x, NULL, width, pivot, 0, 0) / (double)width;
        real mean = (real)exact, rest = (real)(exact - (double)mean);
        double var = row_sum(x, NULL, width, mean, rest, 1) / (double)width;
        real inv_std = (real)(1 / sqrt(var + (double)job->eps));
        job->inv_std[row] = inv_std;
        i64 k = 0;
        for (; k + VW <= width; k += VW)
            store(x_hat + k, (load(x + k) - splat(mean) - splat(rest)) * splat(inv_std));
        for (; k < width; k++) x_hat[k] = (x[k] - mean - rest) * inv_std;
    }
}

/* x_hat = (x - mean) * inv_std, inv_std = 1 / sqrt(var + eps), row by row; width >= 1 */
EXPORT void GL(gl_standardize_forward)(const real *x, real *x_hat, real *inv_std, i64 rows,
                                       i64 width, real eps) {
    job_t job = {.x = x, .out = x_hat, .inv_std = inv_std, .width = width, .eps = eps};
    gl_parallel(rows, grain(width), forward_task, &job);
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
    gl_parallel(rows, grain(width), backward_task, &job);
}
