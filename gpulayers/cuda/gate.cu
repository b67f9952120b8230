// The gated activation unit inside a planned step, a launch each way.
#include "common.cuh"
#include "activation_functions.cuh"

// y (rows, channels) = tanh(f) sigmoid(g), where the lines of x (rows, 2 channels) are f and then g. One thread a number;
// total = y.size.
template <typename T, typename Acc, typename Index>
__global__ void gate_forward(const T* __restrict__ x, T* __restrict__ y, Index total, int channels)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index filter = number / channels * channels + number;
    y[number] = static_cast<T>(tanh(static_cast<Acc>(x[filter])) * logistic(static_cast<Acc>(x[filter + channels])));
}

// dx: of f, dy sigmoid(g) (1 - tanh(f)^2), and of g, dy tanh(f) sigmoid(g) (1 - sigmoid(g)).
template <typename T, typename Acc, typename Index>
__global__ void gate_backward(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, Index total,
                              int channels)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Index filter = number / channels * channels + number;
    const Acc shape = tanh(static_cast<Acc>(x[filter]));
    const Acc gate = logistic(static_cast<Acc>(x[filter + channels]));
    const Acc passed = static_cast<Acc>(dy[number]) * gate;
    dx[filter] = static_cast<T>(passed * (static_cast<Acc>(1) - shape * shape));
    dx[filter + channels] = static_cast<T>(passed * shape * (static_cast<Acc>(1) - gate));
}
