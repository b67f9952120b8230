// Parameters one after the other in one array, and their gradients' parts: for flat.cu and judge.cu.
//
// `sections` has five numbers for each parameter: where it starts in `param`; where its gradient starts in `work`, into
// how many parts the sums of that are cut, and how far apart those lie; and the end in `param`, behind which there may
// be room that belongs to no parameter, so that the next one can be read 16 bytes at a time.

#define FLAT_BLOCK 256
#define NUMBERS 5

__device__ __forceinline__ int section_of(const long long* __restrict__ sections, int count, long long number)
{
    int section = 0;
    while (section + 1 < count && number >= sections[(section + 1) * NUMBERS]) ++section;
    return section;
}

// The sum of a gradient's parts, in their order; several are on their way at a time.
template <typename Acc>
__device__ __forceinline__ Acc gradient_at(const Acc* __restrict__ work, const long long* __restrict__ section,
                                           long long number)
{
    const Acc* const first = work + section[1] + (number - section[0]);
    const long long apart = section[3];
    const int parts = static_cast<int>(section[2]);
    Acc sum = static_cast<Acc>(0);
#pragma unroll 16
    for (int part = 0; part < parts; ++part) sum += first[part * apart];
    return sum;
}

// Cut to [-limit, limit] if there is a limit (> 0); NaN stays.
template <typename Acc>
__device__ __forceinline__ Acc clipped(Acc gradient, Acc limit)
{
    if (limit > static_cast<Acc>(0)) {
        if (gradient > limit) return limit;
        if (gradient < -limit) return -limit;
    }
    return gradient;
}
