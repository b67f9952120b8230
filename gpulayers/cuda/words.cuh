// Several numbers by one load or store: for im2col.cu, gemm.cu and conv.cu.

// VEC neighbours, loaded and stored by one instruction (16 bytes, or a single element).
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
    T item[VEC];
};

// Whether a pointer allows loads and stores of so many bytes.
template <int BYTES>
__device__ __forceinline__ bool lies_at(const void* pointer)
{
    return reinterpret_cast<unsigned long long>(pointer) % BYTES == 0;
}

// Numbers that lie together, as 32-bit words; by one instruction.
template <typename T, int WORDS>
__device__ __forceinline__ void load_words(const T* from, unsigned (&words)[WORDS])
{
    const Pack<unsigned, WORDS> pack = *reinterpret_cast<const Pack<unsigned, WORDS>*>(from);
#pragma unroll
    for (int i = 0; i < WORDS; ++i) words[i] = pack.item[i];
}

__device__ __forceinline__ unsigned bits_of(float number)
{
    return __float_as_uint(number);
}
#ifdef GPULAYERS_FLOAT16
__device__ __forceinline__ unsigned bits_of(__half number)
{
    return __half_as_ushort(number);
}
#endif
#ifdef GPULAYERS_BFLOAT16
__device__ __forceinline__ unsigned bits_of(__nv_bfloat16 number)
{
    return __bfloat16_as_ushort(number);
}
#endif
