// Included before a kernel source so that g++ compiles it unchanged.
// Vector, half and bfloat16 types are NVIDIA's own headers, whose host paths g++ accepts.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <vector_types.h>
#include <vector_functions.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>

#include "collectives.h"

#undef __shared__
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __managed__
#undef __grid_constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#undef __align__
#undef assert
// A __shared__ array becomes a function-local static: its address and size are in the symbol table.
#define __shared__ static
#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define assert(condition) ((condition) ? (void)0 : emu_fail("assert", #condition))

// Code of the emulator itself, which the checker must not see.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread"), no_sanitize("undefined"), noinline))
#define EMU_INLINE static inline __attribute__((always_inline))

// Plain data and const, so that reading it is not instrumented.
struct emu_dim3 {
    unsigned x, y, z;
    operator dim3() const { return dim3(x, y, z); }
};
extern const uint3 threadIdx, blockIdx;
extern const emu_dim3 blockDim, gridDim;
static const int warpSize = 32;

#include "synchronisation.h"
#include "atomics.h"
#include "arithmetic.h"
#include "ptx.h"
#include "kernel_export.h"
