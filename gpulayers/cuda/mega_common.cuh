// What the parts of a block that trains on one example after the other have in common.
//
// mega_source.py writes the kernel around the functions of mega_*.cuh (mega_kernel.cuh). Each stage of the network is a
// structure S of constants: its geometry, and where its arrays start in shared memory, in floats. An input lies there with
// its padding around it, which stays zero, in the order (row, column, channel).

#define THREADS 256

// The number of this thread, in a way that the compiler does not see through. Else it computes once for the whole launch
// what follows from it in every stage, and has too few registers for all that.
__device__ __forceinline__ int this_thread()
{
    int thread = threadIdx.x;
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(thread));
#endif
    return thread;
}

template <int N>
struct alignas(4 * N) Pack {
    float at[N];
};

template <int N>
__device__ __forceinline__ Pack<N> load(const float* place)
{
    return *reinterpret_cast<const Pack<N>*>(place);
}

// A stage's activation; of those with constants a kernel has one (example_conv.py).
template <class S>
__device__ __forceinline__ float stage_value(float z)
{
    return activation_value<float>(S::activation, z, FUSED_ALPHA, FUSED_BETA);
}

// The slope of an activation from its value: those that have one are listed in mega_constants.py.
template <int ACTIVATION>
__device__ __forceinline__ float slope_at(float y)
{
    return slope_at_value<float>(ACTIVATION, y, FUSED_ALPHA, FUSED_BETA);
}

// The larger one; NaN is larger than anything.
__device__ __forceinline__ bool wins(float value, float best)
{
    return value > best || (value != value && best == best);
}

// Where an output goes: into the input of the next stage.
template <class S>
__device__ __forceinline__ int output_place(int row, int col, int filter)
{
    return S::output + ((row + S::output_top) * S::output_cols + col + S::output_left) * S::filters + filter;
}
