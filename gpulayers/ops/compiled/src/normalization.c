/* Batch normalisation of the columns of (m, ch).
 *
 * Statistics: rows are taken in blocks of 64. In a block, sums and sums of squares of x - pivot are
 * kept in the arrays' type, the pivot being the block's first row; since it is one of the numbers,
 * sum (x - pivot)^2 is at most 65 times the sum of squares about the block's mean, so no more than
 * that is lost by cancellation (Chan, Golub & LeVeque, "Algorithms for computing the sample
 * variance", Am. Stat. 37 (1983), section 3, on shifted data). Blocks are then joined in double,
 * about the first row of all. What rounding the mean leaves out is subtracted too.
 *
 * Few channels: `group` rows are taken as one wide row, so that it holds whole vectors.
 */
#include <math.h>

#include "mathfun.h"

#define BLOCK 64   /* rows */
#define TILE 4     /* vectors of columns at a time, whose sums stay in registers */
#define WIDE 2048  /* the widest row that is made of several */
#define PARAMETERS 5

typedef struct {
    const real *x, *x_hat;
    real *y, *out;
    const real *a, *b, *c, *d, *e; /* of each column of a wide row, for the passes that apply */
    double *sums;              /* of each share: 2 x the wide row's columns */
    double *origin;            /* of each column of a wide row */
    i64 ch, group, rows;       /* rows: of the whole array */
} job_t;

/* Rows of ch columns as few wide rows of group * ch: a multiple of VW where ch is small. */
static i64 grouping(i64 rows, i64 ch) {
    i64 group = 1;
    while (group * ch % VW && 2 * group * ch <= WIDE) group *= 2;
    while (group * ch < TILE * VW && 2 * group * ch <= WIDE) group *= 2;
    return group <= rows ? group : 1;
}

/* first[j] += over rows of x - pivot, second[j] += of (x - pivot)^2: VW columns each. With `other`
 * the sums of a gradient: of x, and of x * other. */
INLINE void column_sums(const real *x, const real *other, i64 rows, i64 stride, i64 vectors,
                        i64 lanes, real *pivot, real *first, real *second) {
    vec p[TILE], s[TILE], q[TILE];
    for (i64 v = 0; v < vectors; v++) {
        vec row = load_lanes(x + v * VW, lanes);
        /* from an infinite pivot every distance would be NaN */
        p[v] = other ? splat(0) : select(row - row == splat(0), row, splat(0));
        s[v] = q[v] = splat(0);
    }
    for (i64 r = 0; r < rows; r++) {
        for (i64 v = 0; v < vectors; v++) {
            vec d = load_lanes(x + r * stride + v * VW, lanes) - p[v];
            soon(x + r * stride + v * VW);
            if (other) soon(other + r * stride + v * VW);
            s[v] = s[v] + d;
            q[v] = q[v] + d * (other ? load_lanes(other + r * stride + v * VW, lanes) : d);
        }
    }
    for (i64 v = 0; v < vectors; v++) {
        store_lanes(pivot + v * VW, p[v], lanes);
        store_lanes(first + v * VW, s[v], lanes);
        store_lanes(second + v * VW, q[v], lanes);
    }
}

/* From distances to the block's pivots to distances from the origin, and onto the share's sums. */
INLINE void add_sums(i64 columns, double rows, const real *pivot, const real *first,
                     const real *second, const double *origin, double *sum, double *sum2) {
    for (i64 k = 0; k < columns; k++) {
        double shift = (double)pivot[k] - origin[k], s = first[k];
        sum[k] += s + rows * shift;
        sum2[k] += (double)second[k] + shift * (2 * s + rows * shift);
    }
}

/* One block: `rows` rows of `width` columns, added to the share's sums. */
INLINE void add_block(const job_t *job, const real *x, const real *other, i64 rows, i64 width,
                      double *sums) {
    real pivot[TILE * VEC_BYTES / sizeof(real)], first[TILE * VEC_BYTES / sizeof(real)];
    real second[TILE * VEC_BYTES / sizeof(real)];
    double *sums2 = sums + job->group * job->ch, count = (double)rows;
    for (i64 at = 0; at < width;) {
        const real *beside = other ? other + at : NULL;
        i64 step = VW * TILE;
        if (at + step <= width) {
            column_sums(x + at, beside, rows, width, TILE, VW, pivot, first, second);
            add_sums(VW * TILE, count, pivot, first, second, job->origin + at, sums + at,
                     sums2 + at);
        } else {
            step = min_i64(VW, width - at);
            if (step == VW)
                column_sums(x + at, beside, rows, width, 1, VW, pivot, first, second);
            else
                column_sums(x + at, beside, rows, width, 1, step, pivot, first, second);
            add_sums(step, count, pivot, first, second, job->origin + at, sums + at, sums2 + at);
        }
        at += step;
    }
}

static void sums_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    i64 group = job->group, wide = group * job->ch;
    double *sums = job->sums + 2 * share * wide;
    for (i64 k = begin; k < end; k++) { /* blocks of BLOCK wide rows */
        i64 row = k * BLOCK * group, rows = min_i64(BLOCK * group, job->rows - row);
        const real *x = job->x + row * job->ch;
        const real *other = job->x_hat ? job->x_hat + row * job->ch : NULL;
        i64 whole = rows / group, rest = rows % group;
        if (whole) add_block(job, x, other, whole, wide, sums);
        if (rest)
            add_block(job, x + whole * wide, other ? other + whole * wide : NULL, rest, job->ch,
                      sums);
    }
}

/* The sums over all rows: sums[0 .. ch), and of squares or products sums[wide .. wide + ch). */
static void total(job_t *job) {
    i64 ch = job->ch, wide = job->group * ch, blocks = ceil_div(job->rows, BLOCK * job->group);
    i64 grain = 1 + 32768 / max_i64(1, BLOCK * wide);
    int shares = gl_shares(blocks, grain);
    memset(job->sums, 0, 2 * shares * wide * sizeof(double));
    gl_parallel(blocks, grain, sums_task, job);
    for (int share = 1; share < shares; share++)
        for (i64 k = 0; k < 2 * wide; k++) job->sums[k] += job->sums[2 * share * wide + k];
    for (i64 k = ch; k < wide; k++) { /* the rows of a wide row */
        job->sums[k % ch] += job->sums[k];
        job->sums[wide + k % ch] += job->sums[wide + k];
    }
}

/* Room for the sums of every share, the origin, and the parameters of a wide row. */
static int take_room(job_t *job, real *parameters[PARAMETERS]) {
    i64 wide = job->ch * (job->group = grouping(job->rows, job->ch));
    int shares = gl_shares(job->rows, 1);
    job->sums = gl_scratch(0, (2 * shares + 1) * wide * sizeof(double));
    real *room = gl_scratch(1, PARAMETERS * wide * sizeof(real));
    if (!job->sums || !room) return 1;
    job->origin = job->sums + 2 * shares * wide;
    memset(job->origin, 0, wide * sizeof(double));
    for (int k = 0; k < PARAMETERS; k++) parameters[k] = room + k * wide;
    job->a = parameters[0];
    job->b = parameters[1];
    job->c = parameters[2];
    job->d = parameters[3];
    job->e = parameters[4];
    return 0;
}

static void repeat(real *parameters[PARAMETERS], i64 ch, i64 group) {
    for (int p = 0; p < PARAMETERS; p++)
        for (i64 g = 1; g < group; g++)
            memcpy(parameters[p] + g * ch, parameters[p], ch * sizeof(real));
}

/* Rows [begin, end) of wide rows: `apply(at, column, lanes)` for each vector of each. The rows that
 * make no wide one come with the last. */
#define FOR_ROWS(apply)                                                                        \
    i64 wide = job->group * job->ch, size = job->rows * job->ch;                               \
    for (i64 k = begin; k < end; k++) {                                                        \
        i64 row = k * wide, width = min_i64(wide, size - row), column = 0;                     \
        for (; column + VW <= width; column += VW) apply(job, row + column, column, VW);       \
        if (column < width) apply(job, row + column, column, width - column);                  \
    }

static i64 wide_rows(const job_t *job) { return ceil_div(job->rows, job->group); }

static i64 rows_grain(const job_t *job) {
    return 1 + 32768 / max_i64(1, job->group * job->ch);
}

/* ------------------------------------------------------------------------------------- forward */

/* x_hat = (x - mean) * inv_std, the mean in two parts; y = scaler * x_hat + intercept */
INLINE void normalize_lanes(const job_t *job, i64 at, i64 column, i64 lanes) {
    vec centred = load_lanes(job->x + at, lanes) - load_lanes(job->a + column, lanes);
    centred = centred - load_lanes(job->b + column, lanes);
    vec x_hat = centred * load_lanes(job->c + column, lanes);
    store_lanes(job->out + at, x_hat, lanes);
    vec y = load_lanes(job->d + column, lanes) * x_hat + load_lanes(job->e + column, lanes);
    store_lanes(job->y + at, y, lanes);
    soon(job->x + at);
    soon_written(job->out + at);
    soon_written(job->y + at);
}

static void normalize_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    FOR_ROWS(normalize_lanes)
}

/* x, y, x_hat (m, ch), m >= 1; the others (ch). var is the biased one. Nonzero without memory. */
EXPORT int GL(gl_batchnorm_forward)(const real *x, const real *scaler, const real *intercept,
                                    real *y, real *x_hat, real *mean, real *var, real *inv_std,
                                    i64 m, i64 ch, real eps) {
    job_t job = {.x = x, .y = y, .out = x_hat, .ch = ch, .rows = m};
    real *parameters[PARAMETERS];
    if (ch == 0) return 0;
    if (take_room(&job, parameters)) return 1;
    i64 wide = job.group * ch;
    for (i64 k = 0; k < wide; k++) job.origin[k] = x[k % ch] - x[k % ch] == 0 ? x[k % ch] : 0;
    total(&job);
    for (i64 k = 0; k < ch; k++) {
        double shift = job.sums[k] / (double)m;
        double v = job.sums[wide + k] / (double)m - shift * shift;
        mean[k] = (real)(job.origin[k] + shift);
        var[k] = (real)(v < 0 ? 0 : v); /* NaN stays */
        inv_std[k] = (real)(1 / sqrt((v < 0 ? 0 : v) + (double)eps));
        double rest = job.origin[k] + shift - (double)mean[k];
        parameters[0][k] = mean[k];
        parameters[1][k] = (real)rest;
        parameters[2][k] = inv_std[k];
        parameters[3][k] = scaler[k];
        parameters[4][k] = intercept[k];
    }
    repeat(parameters, ch, job.group);
    gl_pieces(wide_rows(&job), rows_grain(&job), PIECES, normalize_task, &job);
    return 0;
}

/* ------------------------------------------------------------------------------------ backward */

/* dx = scaler * inv_std * (dy - (sum dy + x_hat * sum (dy x_hat)) / m) */
INLINE void gradient_lanes(const job_t *job, i64 at, i64 column, i64 lanes) {
    vec along = load_lanes(job->x_hat + at, lanes) * load_lanes(job->c + column, lanes);
    vec inner = load_lanes(job->x + at, lanes) - load_lanes(job->b + column, lanes) - along;
    store_lanes(job->out + at, load_lanes(job->a + column, lanes) * inner, lanes);
    soon(job->x + at);
    soon(job->x_hat + at);
    soon_written(job->out + at);
}

static void gradient_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    FOR_ROWS(gradient_lanes)
}

/* dy, x_hat, dx (m, ch), the others (ch). Nonzero without memory. */
EXPORT int GL(gl_batchnorm_backward)(const real *dy, const real *x_hat, const real *scaler,
                                     const real *inv_std, real *dx, real *dscaler,
                                     real *dintercept, i64 m, i64 ch) {
    job_t job = {.x = dy, .x_hat = x_hat, .out = dx, .ch = ch, .rows = m};
    real *parameters[PARAMETERS];
    if (ch == 0) return 0;
    if (take_room(&job, parameters)) return 1;
    total(&job);
    const double *sums = job.sums, *products = job.sums + job.group * ch;
    for (i64 k = 0; k < ch; k++) {
        dintercept[k] = (real)sums[k];
        dscaler[k] = (real)products[k];
        parameters[0][k] = scaler[k] * inv_std[k];
        parameters[1][k] = (real)(sums[k] / (double)m);
        parameters[2][k] = (real)(products[k] / (double)m);
        parameters[3][k] = parameters[4][k] = 0;
    }
    repeat(parameters, ch, job.group);
    gl_pieces(wide_rows(&job), rows_grain(&job), PIECES, gradient_task, &job);
    return 0;
}
