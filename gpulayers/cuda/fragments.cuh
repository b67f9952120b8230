// What tensor cores multiply, a warp at a time (from sm_80 on): for large.cuh and sequence_tensor.cuh.

// float rounded to TF32, to the nearest: ties to even from sm_90 on, where that is one instruction; before, there is only
// the way with ties away from zero, which is several anywhere. Neither is nearer than the other.
__device__ __forceinline__ unsigned to_tf32(unsigned bits)
{
    unsigned rounded;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
#else
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
#endif
    return rounded;
}

// d += a b by a warp: 16 rows, 8 columns, 8 words of terms (PTX ISA, "Matrix fragments for mma"). The pointer only says
// of what type the factors are.

__device__ __forceinline__ void multiply_fragments(const float*, float& d0, float& d1, float& d2, float& d3, unsigned a0,
                                                   unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#ifdef GPULAYERS_BFLOAT16
__device__ __forceinline__ void multiply_fragments(const __nv_bfloat16*, float& d0, float& d1, float& d2, float& d3,
                                                   unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                   unsigned b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

#ifdef GPULAYERS_FLOAT16
__device__ __forceinline__ void multiply_fragments(const __half*, float& d0, float& d1, float& d2, float& d3,
                                                   unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                   unsigned b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif
