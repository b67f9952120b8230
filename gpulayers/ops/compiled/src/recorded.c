/* A list of kernel calls that Python noted down and has run as one, again and again: each call from
 * Python costs as much as a small kernel takes. The threads look for work for a moment after each
 * kernel, so within a list they are awake.
 *
 * gl_recorded_<kernel> takes gl_<kernel>'s arguments as a row of values, in the same order.
 */
#include "recorded.h"

/* Filled by gpulayers/ops/compiled/recorded.py; scalars of either type come as doubles. */
typedef union {
    void *p;
    i64 i;
    double d;
} value_t;

#define MOST_VALUES 15

typedef struct {
    int (*kernel)(const value_t *v); /* nonzero: it could not do its work */
    value_t values[MOST_VALUES];
} call_t;

#define RECORDED(kernel) EXPORT int GL(gl_recorded_##kernel)(const value_t *v)
#define INT(k) ((int)v[k].i)
#define REAL(k) ((real)v[k].d)

RECORDED(conv_forward) {
    return GL(gl_conv_forward)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].p, INT(5));
}

RECORDED(conv_input_grad) { return GL(gl_conv_input_grad)(v[0].p, v[1].p, v[2].p, v[3].p); }

RECORDED(conv_weight_grad) {
    return GL(gl_conv_weight_grad)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].p);
}

RECORDED(pointwise_grads) {
    return GL(gl_pointwise_grads)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].p, v[5].p, v[6].p);
}

#ifndef GL_DOUBLE /* Winograd's are for float alone */
enum { NOT_FINITE = 2 }; /* what they say of such results */

RECORDED(winograd_forward) {
    int status = GL(gl_winograd_forward)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].p, INT(5));
    return status == NOT_FINITE ? GL(gl_recorded_conv_forward)(v) : status;
}

RECORDED(winograd_input_grad) {
    int status = GL(gl_winograd_input_grad)(v[0].p, v[1].p, v[2].p, v[3].p);
    return status == NOT_FINITE ? GL(gl_recorded_conv_input_grad)(v) : status;
}

RECORDED(winograd_weight_grad) {
    int status = GL(gl_winograd_weight_grad)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].p);
    return status == NOT_FINITE ? GL(gl_recorded_conv_weight_grad)(v) : status;
}
#endif

RECORDED(column_sums) { return GL(gl_column_sums)(v[0].p, v[1].p, v[2].i, v[3].i); }

RECORDED(product) {
    return GL(gl_product)(v[0].p, v[1].i, INT(2), v[3].p, v[4].i, INT(5), v[6].p, INT(7), v[8].p,
                          v[9].i, v[10].i, v[11].i, v[12].i);
}

RECORDED(max_pool_forward) {
    GL(gl_max_pool_forward)(v[0].p, v[1].p, v[2].p, v[3].p);
    return 0;
}

RECORDED(max_pool_backward) {
    return GL(gl_max_pool_backward)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].p);
}

RECORDED(activation_backward) {
    GL(gl_activation_backward)(v[0].p, v[1].p, v[2].p, v[3].i, INT(4), REAL(5), REAL(6));
    return 0;
}

RECORDED(cross_entropy_both) {
    GL(gl_cross_entropy_both)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].i, v[5].i, REAL(6));
    return 0;
}

RECORDED(sgd) {
    GL(gl_sgd)(v[0].p, v[1].p, v[2].p, v[3].i, REAL(4), REAL(5));
    return 0;
}

RECORDED(adagrad) {
    GL(gl_adagrad)(v[0].p, v[1].p, v[2].p, v[3].i, REAL(4), REAL(5));
    return 0;
}

RECORDED(rmsprop) {
    GL(gl_rmsprop)(v[0].p, v[1].p, v[2].p, v[3].i, REAL(4), REAL(5), REAL(6), REAL(7));
    return 0;
}

RECORDED(adam) {
    GL(gl_adam)(v[0].p, v[1].p, v[2].p, v[3].p, v[4].i, REAL(5), REAL(6), REAL(7), REAL(8),
                REAL(9), REAL(10), REAL(11));
    return 0;
}

/* Run the calls in their order, up to the first that fails; return how that one failed, else 0. */
EXPORT int GL(gl_run_calls)(const call_t *calls, i64 count) {
    int status = 0;
    for (i64 i = 0; i < count && !status; i++) status = calls[i].kernel(calls[i].values);
    return status;
}
