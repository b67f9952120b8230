// The element-wise part of a step of a simple recurrent network, forward and back.
#include "common.cuh"
#include "activation_functions.cuh"

// z = recurrent + ba + projected + bx, a = act(z). One thread an element of (n, hidden); total = z.size.
template <typename T, typename Acc, typename Index>
__global__ void rnn_step_forward(const T* __restrict__ projected, const T* __restrict__ recurrent,
                                 const T* __restrict__ ba, const T* __restrict__ bx, T* __restrict__ z,
                                 T* __restrict__ a, Index total, int hidden, int act, Acc alpha, Acc beta)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const int unit = static_cast<int>(number % hidden);
    const T sum = static_cast<T>(static_cast<Acc>(recurrent[number]) + static_cast<Acc>(ba[unit]) +
                                 static_cast<Acc>(projected[number]) + static_cast<Acc>(bx[unit]));
    z[number] = sum;
    a[number] = static_cast<T>(activation_value(act, static_cast<Acc>(sum), alpha, beta));
}

// dz = (da + accumulator) * act'(z): the loss and the next step both use a
template <typename T, typename Acc, typename Index>
__global__ void rnn_step_backward(const T* __restrict__ da, const T* __restrict__ accumulator, const T* __restrict__ z,
                                  T* __restrict__ dz, Index total, int act, Acc alpha, Acc beta)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc slope = activation_slope(act, static_cast<Acc>(z[number]), alpha, beta);
    dz[number] = static_cast<T>((static_cast<Acc>(da[number]) + static_cast<Acc>(accumulator[number])) * slope);
}
