// Intrinsics for memory, bits and arithmetic. Fast-maths intrinsics take the accurate routine.
#pragma once

template <typename T> EMU_INLINE T __ldg(const T* address) { return *address; }
template <typename T> EMU_INLINE T __ldca(const T* address) { return *address; }
template <typename T> EMU_INLINE T __ldcg(const T* address) { return *address; }
template <typename T> EMU_INLINE T __ldcs(const T* address) { return *address; }
template <typename T> EMU_INLINE void __stcg(T* address, T value) { *address = value; }
template <typename T> EMU_INLINE void __stcs(T* address, T value) { *address = value; }

// Byte by byte, because the checker cannot see inside the C library's memcpy.
EMU_INLINE void* emu_memcpy(void* to, const void* from, size_t bytes)
{
    for (size_t i = 0; i < bytes; ++i) ((char*)to)[i] = ((const char*)from)[i];
    return to;
}
#define memcpy emu_memcpy

template <typename To, typename From> EMU_INLINE To emu_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "reinterpreting needs equal sizes");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
EMU_INLINE float __int_as_float(int x) { return emu_bits<float>(x); }
EMU_INLINE int __float_as_int(float x) { return emu_bits<int>(x); }
EMU_INLINE float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
EMU_INLINE unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
EMU_INLINE double __longlong_as_double(long long x) { return emu_bits<double>(x); }
EMU_INLINE long long __double_as_longlong(double x) { return emu_bits<long long>(x); }

EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
EMU_INLINE int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_INLINE int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)(((unsigned long long)a * b) >> 32);
}
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

// The integer overload set of CUDA; NaN loses in the floating ones, as in fminf and fmaxf.
#define EMU_MIN_MAX(T)                                    \
    EMU_INLINE T min(T a, T b) { return b < a ? b : a; }  \
    EMU_INLINE T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
EMU_INLINE float min(float a, float b) { return fminf(a, b); }
EMU_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMU_INLINE double min(double a, double b) { return fmin(a, b); }
EMU_INLINE double max(double a, double b) { return fmax(a, b); }

// Macros, because C23's library (glibc 2.42 and later) has functions of these names.
EMU_INLINE float emu_rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE double emu_rsqrt(double x) { return 1.0 / sqrt(x); }
#define rsqrtf(x) emu_rsqrtf(x)
#define rsqrt(x) emu_rsqrt(x)
EMU_INLINE float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
EMU_INLINE double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
// Macros, because the C library has hidden functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanhf(x) tanhf(x)
EMU_INLINE float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
EMU_INLINE float __fdividef(float x, float y) { return x / y; }
EMU_INLINE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }

// Single operations rounded to nearest (g++ runs with -ffp-contract=off).
#define EMU_ROUNDED(T, letter, root)                                            \
    EMU_INLINE T __##letter##add_rn(T a, T b) { return a + b; }                 \
    EMU_INLINE T __##letter##sub_rn(T a, T b) { return a - b; }                 \
    EMU_INLINE T __##letter##mul_rn(T a, T b) { return a * b; }                 \
    EMU_INLINE T __##letter##div_rn(T a, T b) { return a / b; }                 \
    EMU_INLINE T __##letter##rcp_rn(T a) { return (T)1 / a; }                   \
    EMU_INLINE T __##letter##sqrt_rn(T a) { return root(a); }
EMU_ROUNDED(float, f, sqrtf)
EMU_ROUNDED(double, d, sqrt)
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INLINE double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
EMU_INLINE float __double2float_rn(double x) { return (float)x; }
EMU_INLINE float __int2float_rn(int x) { return (float)x; }
EMU_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
EMU_INLINE float __ll2float_rn(long long x) { return (float)x; }
EMU_INLINE double __int2double_rn(int x) { return (double)x; }
EMU_INLINE double __ll2double_rn(long long x) { return (double)x; }
EMU_INLINE double __ull2double_rn(unsigned long long x) { return (double)x; }
