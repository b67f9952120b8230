/* Bias and activation, and the chain rule through an activation; gpulayers/activations.py defines
 * the functions. Memory is read and written once; a row of channels may be of any length, since
 * the bias is repeated into a block that spans several rows. */
#include "mathfun.h"
#include "recorded.h"

/* In the order of gpulayers/ops/compiled/activation.py. */
enum {
    IDENTITY,
    SIGMOID,
    RELU,
    LEAKY_RELU,
    GELU_TANH,
    GELU_ERF,
    TANH,
    AFFINE,
    ELU,
    EXPONENTIAL,
    SELU,
    HARD_SIGMOID,
    SOFTPLUS
};

#define BLOCK 1024 /* about so many elements share one block of repeated bias */

typedef struct {
    real *z;
    const real *dy, *b;
    real *out;
    i64 size, ch, block;
    int act;
    real alpha, beta;
} job_t;

/* GELU z Phi(z) (Hendrycks & Gimpel, 2016, section 2); its tanh form is z s(2u) with this u. */
INLINE vec gelu_u(vec z) {
    return splat((real)0.7978845608028654) * z * (splat(1) + splat((real)0.044715) * z * z);
}

/* Beyond +-40 Phi is 0 or 1 in both types; cut there, or minus infinity would meet a zero. */
INLINE vec cut(vec z) { return at_most(at_least(z, -40), 40); }

INLINE vec normal_cdf(vec z) {
    return splat((real)0.5) * vector_erfc(splat((real)-0.7071067811865476) * z);
}

INLINE vec value(int act, vec z, vec alpha, vec beta) {
    vec unused, zero = splat(0), one = splat(1);
    vec low = select(z > zero, zero, z); /* min(z, 0), or NaN */
    switch (act) {
    case SIGMOID: return logistic(z, &unused);
    case RELU: return select(z <= zero, zero, z);
    case LEAKY_RELU: return select(z < zero, alpha * z, z);
    case GELU_TANH: return at_least(z, -40) * logistic(splat(2) * gelu_u(cut(z)), &unused);
    case GELU_ERF: return at_least(z, -40) * normal_cdf(cut(z));
    case TANH: return vector_tanh(z);
    case AFFINE: return alpha * z + beta;
    case ELU: return select(z > zero, z, alpha * vector_expm1_negative(low));
    case EXPONENTIAL: return vector_exp(z);
    case SELU: return beta * select(z > zero, z, alpha * vector_expm1_negative(low));
    case HARD_SIGMOID: {
        vec line = alpha * z + beta;
        return select(line < zero, zero, select(line > one, one, line));
    }
    case SOFTPLUS:
        return select(z <= zero, zero, z) + vector_log1p_unit(vector_exp(-magnitude(z)));
    default: return z;
    }
}

INLINE vec slope(int act, vec z, vec alpha, vec beta) {
    vec ds, unused, zero = splat(0), one = splat(1);
    vec low = select(z > zero, zero, z);
    switch (act) {
    case SIGMOID: logistic(z, &ds); return ds;
    case RELU: return select(z > zero, one, zero);
    case LEAKY_RELU: return select(z < zero, alpha, one);
    case GELU_TANH: {
        vec x = cut(z), s = logistic(splat(2) * gelu_u(x), &ds);
        vec du = splat((real)0.7978845608028654) * (one + splat((real)0.134145) * x * x);
        return s + splat(2) * x * ds * du;
    }
    case GELU_ERF: {
        vec x = cut(z);
        vec density = splat((real)0.3989422804014327) * vector_exp(splat((real)-0.5) * x * x);
        return normal_cdf(x) + x * density;
    }
    case TANH: {
        vec t = vector_tanh(z);
        return one - t * t;
    }
    case AFFINE: return alpha;
    case ELU: return select(z > zero, one, alpha * vector_exp(low));
    case EXPONENTIAL: return vector_exp(z);
    case SELU: return beta * select(z > zero, one, alpha * vector_exp(low));
    case HARD_SIGMOID: return select(magnitude(z) <= splat((real)2.5), alpha, zero);
    case SOFTPLUS: return logistic(z, &unused);
    default: return one;
    }
}

/* ------------------------------------------------------------------------------------- forward */

INLINE void forward_lanes(const job_t *job, int act, i64 at, const real *b, i64 lanes) {
    vec z = load_lanes(job->z + at, lanes);
    if (b) {
        z = z + load_lanes(b, lanes);
        store_lanes(job->z + at, z, lanes);
    }
    if (act != IDENTITY)
        store_lanes(job->out + at, value(act, z, splat(job->alpha), splat(job->beta)), lanes);
}

/* Elements [begin, end), the first of which meets b[0]. */
INLINE void forward_block(const job_t *job, int act, i64 begin, i64 end, const real *b) {
    i64 at = begin;
    for (; at + VW <= end; at += VW) forward_lanes(job, act, at, b ? b + (at - begin) : NULL, VW);
    if (at < end) forward_lanes(job, act, at, b ? b + (at - begin) : NULL, end - at);
}

INLINE void forward_blocks(const job_t *job, int act, i64 begin, i64 end, const real *b) {
    for (i64 k = begin; k < end; k++)
        forward_block(job, act, k * job->block, min_i64((k + 1) * job->block, job->size), b);
}

/* Calls `run` with the activation as a constant, so that each gets a loop of its own. */
#define FOR_EACH_ACTIVATION(run)          \
    switch (job->act) {                   \
    case SIGMOID: run(SIGMOID);           \
    case RELU: run(RELU);                 \
    case LEAKY_RELU: run(LEAKY_RELU);     \
    case GELU_TANH: run(GELU_TANH);       \
    case GELU_ERF: run(GELU_ERF);         \
    case TANH: run(TANH);                 \
    case AFFINE: run(AFFINE);             \
    case ELU: run(ELU);                   \
    case EXPONENTIAL: run(EXPONENTIAL);   \
    case SELU: run(SELU);                 \
    case HARD_SIGMOID: run(HARD_SIGMOID); \
    case SOFTPLUS: run(SOFTPLUS);         \
    default: run(IDENTITY);               \
    }

static void forward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    real repeated[BLOCK];
    const real *b = job->b;
    (void)share;
    if (b && job->block > job->ch) {
        for (i64 k = 0; k < job->block; k += job->ch)
            memcpy(repeated + k, b, job->ch * sizeof(real));
        b = repeated;
    }
#define RUN(act)                                \
    forward_blocks(job, act, begin, end, b); \
    break
    FOR_EACH_ACTIVATION(RUN)
#undef RUN
}

/* Elements a share must have to be worth a thread. */
static i64 grain(int act) {
    switch (act) {
    case IDENTITY:
    case RELU:
    case LEAKY_RELU:
    case AFFINE:
    case HARD_SIGMOID: return 32 * BLOCK;
    default: return 8 * BLOCK;
    }
}

/* z (rows, ch) += b, where there is a bias; y = act(z), but for the identity. y may be z. */
EXPORT void GL(gl_bias_activation)(real *z, const real *b, real *y, i64 rows, i64 ch, int act,
                                   real alpha, real beta) {
    job_t job = {.z = z, .b = b, .out = y, .size = rows * ch, .act = act, .alpha = alpha,
                 .beta = beta};
    if (job.size == 0) return;
    /* whole rows in a block, and (where they are short) whole vectors */
    i64 repeats = max_i64(1, min_i64(BLOCK / ch, rows));
    if (repeats > VW) repeats -= repeats % VW;
    job.ch = ch;
    job.block = b ? repeats * ch : BLOCK;
    gl_pieces(ceil_div(job.size, job.block), max_i64(1, grain(act) / job.block), PIECES, forward_task,
                &job);
}

/* ------------------------------------------------------------------------------------ backward */

INLINE void backward_lanes(const job_t *job, int act, i64 at, i64 lanes) {
    vec z = load_lanes(job->z + at, lanes);
    vec dz = load_lanes(job->dy + at, lanes) * slope(act, z, splat(job->alpha), splat(job->beta));
    store_lanes(job->out + at, dz, lanes);
}

INLINE void backward_range(const job_t *job, int act, i64 begin, i64 end) {
    i64 at = begin;
    for (; at + VW <= end; at += VW) backward_lanes(job, act, at, VW);
    if (at < end) backward_lanes(job, act, at, end - at);
}

static void backward_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    (void)share;
    begin *= BLOCK;
    end = min_i64(end * BLOCK, job->size);
#define RUN(act)                           \
    backward_range(job, act, begin, end); \
    break
    FOR_EACH_ACTIVATION(RUN)
#undef RUN
}

/* dz = dy * act'(z), elementwise; dz may be dy. */
EXPORT void GL(gl_activation_backward)(const real *dy, const real *z, real *dz, i64 size, int act,
                                       real alpha, real beta) {
    job_t job = {.z = (real *)z, .dy = dy, .out = dz, .size = size, .act = act, .alpha = alpha,
                 .beta = beta};
    gl_pieces(ceil_div(size, BLOCK), grain(act) / BLOCK, PIECES, backward_task, &job);
}
