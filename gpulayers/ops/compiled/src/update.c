/* Optimizer updates, in place; gpulayers/optimizers.py names the sources of the rules. One pass
 * over memory, which is what bounds them; the compiler makes vectors of these loops. */
#include <math.h>

#include "recorded.h"

#define GRAIN 32768 /* elements that are worth a thread */

#ifdef GL_DOUBLE
#define ROOT sqrt
#define FUSED __builtin_fma
#else
#define ROOT sqrtf
#define FUSED __builtin_fmaf
#endif

/* a b + c. Of two products and a sum the compiler may fuse either, and in the scalar loop, which it
 * keeps for arrays that lie close together, another than in vectors: then results would depend on
 * where the arrays are. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MULTIPLY_ADD(a, b, c) FUSED(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

typedef struct {
    real *param, *state;
    const real *grad;
    real lr, decay, rest, eps;
} job_t;

static void sgd_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    real *RESTRICT param = job->param, *RESTRICT velocity = job->state;
    const real *RESTRICT grad = job->grad;
    real lr = job->lr, momentum = job->decay;
    (void)share;
    for (i64 k = begin; k < end; k++) {
        real v = MULTIPLY_ADD(momentum, velocity[k], lr * grad[k]);
        velocity[k] = v;
        param[k] -= v;
    }
}

/* velocity = momentum velocity + lr grad; param -= velocity */
EXPORT void GL(gl_sgd)(real *param, const real *grad, real *velocity, i64 n, real lr,
                       real momentum) {
    job_t job = {.param = param, .grad = grad, .state = velocity, .lr = lr, .decay = momentum};
    gl_pieces(n, GRAIN, PIECES, sgd_task, &job);
}

static void adagrad_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    real *RESTRICT param = job->param, *RESTRICT cache = job->state;
    const real *RESTRICT grad = job->grad;
    real lr = job->lr, eps = job->eps;
    (void)share;
    for (i64 k = begin; k < end; k++) {
        real g = grad[k], c = cache[k] + g * g;
        cache[k] = c;
        param[k] -= lr * g / (ROOT(c) + eps);
    }
}

/* cache += grad^2; param -= lr grad / (sqrt(cache) + eps) */
EXPORT void GL(gl_adagrad)(real *param, const real *grad, real *cache, i64 n, real lr, real eps) {
    job_t job = {.param = param, .grad = grad, .state = cache, .lr = lr, .eps = eps};
    gl_pieces(n, GRAIN, PIECES, adagrad_task, &job);
}

static void rmsprop_task(void *arguments, i64 begin, i64 end, int share) {
    const job_t *job = arguments;
    real *RESTRICT param = job->param, *RESTRICT cache = job->state;
    const real *RESTRICT grad = job->grad;
    real lr = job->lr, decay = job->decay, rest = job->rest, eps = job->eps;
    (void)share;
    for (i64 k = begin; k < end; k++) {
        real g = grad[k], c = MULTIPLY_ADD(decay, cache[k], rest * (g * g));
        cache[k] = c;
        param[k] -= lr * g / (ROOT(c) + eps);
    }
}

/* cache = decay cache + rest grad^2; param -= lr grad / (sqrt(cache) + eps). `rest` is 1 - decay,
 * taken before rounding to float. */
EXPORT void GL(gl_rmsprop)(real *param, const real *grad, real *cache, i64 n, real lr, real decay,
                           real rest, real eps) {
    job_t job = {.param = param, .grad = grad, .state = cache, .lr = lr, .decay = decay,
                 .rest = rest, .eps = eps};
    gl_pieces(n, GRAIN, PIECES, rmsprop_task, &job);
}

typedef struct {
    real *param, *mean, *var;
    const real *grad;
    real decay1, rest1, decay2, rest2, step, scale, eps;
} adam_t;

static void adam_task(void *arguments, i64 begin, i64 end, int share) {
    const adam_t *job = arguments;
    real *RESTRICT param = job->param, *RESTRICT mean = job->mean, *RESTRICT var = job->var;
    const real *RESTRICT grad = job->grad;
    real decay1 = job->decay1, rest1 = job->rest1, decay2 = job->decay2, rest2 = job->rest2;
    real step = job->step, scale = job->scale, eps = job->eps;
    (void)share;
    for (i64 k = begin; k < end; k++) {
        real g = grad[k];
        real m = MULTIPLY_ADD(decay1, mean[k], rest1 * g);
        real v = MULTIPLY_ADD(decay2, var[k], rest2 * (g * g));
        mean[k] = m;
        var[k] = v;
        param[k] -= step * m / (ROOT(v) * scale + eps);
    }
}

/* mean = d1 mean + r1 grad; var = d2 var + r2 grad^2; param -= step mean / (sqrt(var) scale + eps):
 * r = 1 - d; step and scale hold the corrections of the averages' bias. */
EXPORT void GL(gl_adam)(real *param, const real *grad, real *mean, real *var, i64 n, real decay1,
                        real rest1, real decay2, real rest2, real step, real scale, real eps) {
    adam_t job = {param, mean, var, grad, decay1, rest1, decay2, rest2, step, scale, eps};
    gl_pieces(n, GRAIN, PIECES, adam_task, &job);
}
