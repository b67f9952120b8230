// Batches taken from a dataset on the device, and what a step leaves there for the host.
//
// `order` has the numbers of an epoch's examples in their order, `position` (1) how many of them were used. A captured
// step reads both anew each time, so that it needs no argument of its own.
#include "common.cuh"

#define FEED_BLOCK 256

// Two roundings, as array formulas have them, not one; of a half type each to that type.
__device__ __forceinline__ float product_then_sum(float value, float scale, float shift)
{
    return __fadd_rn(__fmul_rn(value, scale), shift);
}

__device__ __forceinline__ double product_then_sum(double value, double scale, double shift)
{
    return __dadd_rn(__dmul_rn(value, scale), shift);
}

template <typename T, typename Acc>
__device__ __forceinline__ T from_byte(unsigned char byte, Acc scale, Acc shift)
{
    if constexpr (sizeof(T) == 2) {
        const Acc product = static_cast<Acc>(static_cast<T>(static_cast<Acc>(byte) * scale));
        return static_cast<T>(product + shift);
    } else {
        return product_then_sum(static_cast<Acc>(byte), scale, shift);
    }
}

// The number of the example at a place of the batch; behind the end of `order` there is none: -1.
__device__ __forceinline__ long long example_at(const int* __restrict__ order, const int* __restrict__ position,
                                                long long place, long long length)
{
    const long long at = position[0] + place;
    return at < length ? order[at] : -1;
}

// batch (n, width) = factors[0] * byte + factors[1], channels fastest; labels alike. total = batch.size.
// Where there is no example the image is NaN and the label -1, which makes the loss NaN.
template <typename T, typename Acc, typename Index>
__global__ void gather_bytes(const unsigned char* __restrict__ images, const long long* __restrict__ labels,
                             const int* __restrict__ order, const int* __restrict__ position,
                             const Acc* __restrict__ factors, T* __restrict__ batch,
                             long long* __restrict__ batch_labels, Index total, int width, int channels, Index length)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index place = number / width;
    const int within = static_cast<int>(number - place * width);
    const long long example = example_at(order, position, place, length);
    const int channel = within % channels;
    batch[number] = example < 0 ? static_cast<T>(not_a_number<Acc>())
                                : from_byte<T, Acc>(images[example * width + within], factors[channel],
                                                    factors[channels + channel]);
    if (within == 0) batch_labels[place] = example < 0 ? example : labels[example];
}

// The same for images that are stored as the network takes them.
template <typename T, typename Acc, typename Index>
__global__ void gather_rows(const T* __restrict__ images, const long long* __restrict__ labels,
                            const int* __restrict__ order, const int* __restrict__ position, T* __restrict__ batch,
                            long long* __restrict__ batch_labels, Index total, int width, Index length)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index place = number / width;
    const int within = static_cast<int>(number - place * width);
    const long long example = example_at(order, position, place, length);
    batch[number] = example < 0 ? static_cast<T>(not_a_number<Acc>()) : images[example * width + within];
    if (within == 0) batch_labels[place] = example < 0 ? example : labels[example];
}

// Whether the label's output is the largest of a row, the first of equals; NaN counts as larger than any number.
template <typename T, typename Acc>
__device__ __forceinline__ bool is_hit(const T* __restrict__ row, int classes, long long label)
{
    int best = 0;
    Acc largest = static_cast<Acc>(row[0]);
    for (int k = 1; k < classes && largest == largest; ++k) {
        const Acc value = static_cast<Acc>(row[k]);
        if (value > largest || value != value) {
            best = k;
            largest = value;
        }
    }
    return best == label;
}

// The end of a step, by one block, after everything that read `position`: loss = scale * the sum of the losses in the
// order of flat.cu's finish_loss; loss and hits to the record's next row; one step more, count examples further.
template <typename T, typename Acc>
__global__ void __launch_bounds__(FEED_BLOCK)
    finish_step(const Acc* __restrict__ losses, const T* __restrict__ outputs, const long long* __restrict__ labels,
                Acc* __restrict__ loss, int* __restrict__ step, int* __restrict__ position, int* __restrict__ done,
                Acc* __restrict__ record, int count, int classes, int slots, Acc scale)
{
    __shared__ Acc sums[FEED_BLOCK];
    __shared__ int hits[FEED_BLOCK];
    const int thread = threadIdx.x;
    Acc sum = static_cast<Acc>(0);
    int right = 0;
    for (int i = thread; i < count; i += FEED_BLOCK) {
        sum += losses[i];
        right += is_hit<T, Acc>(outputs + static_cast<long long>(i) * classes, classes, labels[i]);
    }
    sums[thread] = sum;
    hits[thread] = right;
    __syncthreads();
    for (int half = FEED_BLOCK / 2; half > 0; half /= 2) {
        if (thread < half) {
            sums[thread] += sums[thread + half];
            hits[thread] += hits[thread + half];
        }
        __syncthreads();
    }
    if (thread > 0) return;
    const Acc mean = sums[0] * scale;
    loss[0] = mean;
    Acc* const row = record + 2 * (done[0] % slots);
    row[0] = mean;
    row[1] = static_cast<Acc>(hits[0]);
    step[0] += 1;
    position[0] += count;
    done[0] += 1;
}
