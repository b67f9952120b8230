/* What every kernel file shares: the scalar type, vectors of it, and the thread pool.
 *
 * Each file is compiled twice, for float and (with GL_DOUBLE) for double: GL(name) gives the two
 * their names, name_f32 and name_f64. Vectors are GCC/Clang vector extensions, so the same source
 * becomes SSE2, AVX2, AVX-512 or NEON code by the compiler's flags; there are no intrinsics.
 *
 * All arrays are C-contiguous and checked by the caller; images are (n, rows, cols, ch).
 */
#ifndef GPULAYERS_COMMON_H
#define GPULAYERS_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "threads.h"

typedef int64_t i64;

#ifdef GL_DOUBLE
typedef double real;
typedef int64_t bits; /* an integer as wide as a real: what comparing two vectors gives */
#define GL(name) name##_f64
#else
typedef float real;
typedef int32_t bits;
#define GL(name) name##_f32
#endif

#if defined(__AVX512F__)
#define VEC_BYTES 64
#elif defined(__AVX__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif
#define VW ((i64)(VEC_BYTES / sizeof(real))) /* scalars in a vector */

/* aligned(sizeof(real)): loads and stores need no more alignment than a scalar has */
typedef real loose __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));
#ifdef __aarch64__ /* GCC 14 breaks down there over arguments of so little alignment */
typedef real vec __attribute__((vector_size(VEC_BYTES)));
#else
typedef loose vec;
#endif
typedef bits mask __attribute__((vector_size(VEC_BYTES)));

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define RESTRICT __restrict__

INLINE vec load(const real *p) { return *(const loose *)p; }
INLINE void store(real *p, vec v) { *(loose *)p = v; }
INLINE vec splat(real x) { return x - (vec){0}; }
/* mask ? a : b, lane by lane; a mask lane is all ones or all zeros */
INLINE vec select(mask m, vec a, vec b) { return (vec)((m & (mask)a) | (~m & (mask)b)); }

INLINE i64 min_i64(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 max_i64(i64 a, i64 b) { return a > b ? a : b; }
INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

#endif
