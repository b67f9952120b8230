// Rows of a table by their number, and the sums of rows that share a number.
#include "common.cuh"

// y = rows `ids` of the table (count, width); an id outside [0, count) reads nothing and gives NaN.
// One thread an element; total = y.size.
template <typename T, typename Acc, typename Index>
__global__ void embedding_forward(const T* __restrict__ table, const long long* __restrict__ ids, T* __restrict__ y,
                                  Index total, int width, Index count)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index row = number / width;
    const long long id = ids[row];
    const bool known = id >= 0 && id < count;
    y[number] = known ? table[static_cast<Index>(id) * width + number - row * width]
                      : static_cast<T>(not_a_number<Acc>());
}

#define WARPS 8

// Row k of sums (count, width), zeros before, gets the sum of dy over the places where ids is k, in their order.
// A warp takes place `first` and 32 columns; it goes on only if no earlier place has the same id. An id outside
// [0, count) is left out. No atomics and no sorting: n * n / 32 steps in all, for n ids.
template <typename T, typename Acc, typename Index>
__global__ void embedding_backward(const T* __restrict__ dy, const long long* __restrict__ ids, T* __restrict__ sums,
                                   int n, int width, Index count)
{
    const int first = blockIdx.y * WARPS + threadIdx.x / 32;
    if (first >= n) return;
    const long long id = ids[first];
    if (id < 0 || id >= count) return;
    const int lane = threadIdx.x % 32;
    const int column = blockIdx.x * 32 + lane;

    Acc sum = static_cast<Acc>(0);
    for (int start = 0; start < n; start += 32) {
        unsigned found = __ballot_sync(0xffffffffu, start + lane < n && ids[start + lane] == id);
        for (; found; found &= found - 1) {
            const int place = start + __ffs(static_cast<int>(found)) - 1;
            if (place < first) return;
            if (column < width) sum += static_cast<Acc>(dy[static_cast<Index>(place) * width + column]);
        }
    }
    if (column < width) sums[static_cast<Index>(id) * width + column] = static_cast<T>(sum);
}
