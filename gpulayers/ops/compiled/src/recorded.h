/* The kernels that a recorded step may hold, see recorded.c. */
#ifndef GPULAYERS_RECORDED_H
#define GPULAYERS_RECORDED_H

#include "pool.h"

int GL(gl_conv_forward)(const real *x, const real *w, const real *b, real *z, const i64 *numbers,
                        int relu);
int GL(gl_conv_input_grad)(const real *dz, const real *w, real *dx, const i64 *numbers);
int GL(gl_conv_weight_grad)(const real *x, const real *dz, real *dw, real *db, const i64 *numbers);
int GL(gl_pointwise_grads)(const real *x, const real *dz, const real *w, real *dx, real *dw,
                           real *db, const i64 *numbers);
int GL(gl_winograd_forward)(const real *x, const real *w, const real *b, real *z,
                            const i64 *numbers, int relu);
int GL(gl_winograd_input_grad)(const real *dz, const real *w, real *dx, const i64 *numbers);
int GL(gl_winograd_weight_grad)(const real *x, const real *dz, real *dw, real *db,
                                const i64 *numbers);
int GL(gl_column_sums)(const real *z, real *sums, i64 rows, i64 cols);
int GL(gl_product)(const real *A, i64 lda, int A_transposed, const real *B, i64 ldb,
                   int B_transposed, const real *bias, int relu, real *C, i64 ldc, i64 M, i64 N,
                   i64 K);
void GL(gl_max_pool_forward)(const real *x, real *y, uint8_t *winners, const window_t *w);
int GL(gl_max_pool_backward)(const real *dy, const uint8_t *winners, const real *y, real *dx,
                             const window_t *w);
void GL(gl_activation_backward)(const real *dy, const real *z, real *dz, i64 size, int act,
                                real alpha, real beta);
void GL(gl_cross_entropy_both)(const real *x, const i64 *labels, real *losses, real *dx, i64 rows,
                               i64 width, real scale);
void GL(gl_sgd)(real *param, const real *grad, real *velocity, i64 n, real lr, real momentum);
void GL(gl_adagrad)(real *param, const real *grad, real *cache, i64 n, real lr, real eps);
void GL(gl_rmsprop)(real *param, const real *grad, real *cache, i64 n, real lr, real decay,
                    real rest, real eps);
void GL(gl_adam)(real *param, const real *grad, real *mean, real *var, i64 n, real decay1,
                 real rest1, real decay2, real rest2, real step, real scale, real eps);

#endif
