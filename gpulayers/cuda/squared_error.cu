// The squared error of a planned step.
#include "common.cuh"
#include "rows.cuh"

// losses (rows) = half the sum of (outputs - targets)^2 over `width` numbers, in Acc; doutputs = (outputs - targets) *
// scale[0], rounded last of all. A warp a row; without `scaled` the scale is 1.
template <typename T, typename Acc, typename Index>
__global__ void squared_error_step(const T* __restrict__ outputs, const T* __restrict__ targets,
                                   const Acc* __restrict__ scale, Acc* __restrict__ losses, T* __restrict__ doutputs,
                                   Index rows, int width, int scaled)
{
    const Index row = row_number<Index, 32>();
    if (row >= rows) return;
    const Index start = row * width;
    const int lane = threadIdx.x % 32;
    Acc sum = static_cast<Acc>(0);
    for (int i = lane; i < width; i += 32) {
        const Acc away = static_cast<Acc>(outputs[start + i]) - static_cast<Acc>(targets[start + i]);
        sum += away * away;
        doutputs[start + i] = static_cast<T>(scaled ? away * scale[0] : away);
    }
    sum = reduce_row<32, false>(sum, static_cast<Acc*>(nullptr));
    if (lane == 0) losses[row] = static_cast<Acc>(0.5f) * sum;
}
