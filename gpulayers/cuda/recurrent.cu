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

// Long short-term memory. One thread a unit (row, unit) of (n, hidden); total = c.size. A row of gates,
// recurrent, bias and dz holds four blocks of hidden numbers: forget, update, candidate, output.
// gates: X W on entry, their values on return. c = f c_prev + u candidate, a = o tanh(c).
template <typename T, typename Acc, typename Index>
__global__ void lstm_step_forward(T* __restrict__ gates, const T* __restrict__ recurrent, const T* __restrict__ bias,
                                  const T* __restrict__ c_prev, T* __restrict__ c, T* __restrict__ a, Index total,
                                  int hidden)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const int unit = static_cast<int>(number % hidden);
    Acc value[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const int column = k * hidden + unit;
        const Index place = number / hidden * 4 * hidden + column;
        const Acc sum = static_cast<Acc>(gates[place]) + static_cast<Acc>(recurrent[place]) +
                        static_cast<Acc>(bias[column]);
        const T stored = static_cast<T>(k == 2 ? tanh(sum) : logistic(sum));
        gates[place] = stored;
        value[k] = static_cast<Acc>(stored);
    }
    const T state = static_cast<T>(value[0] * static_cast<Acc>(c_prev[number]) + value[1] * value[2]);
    c[number] = state;
    a[number] = static_cast<T>(value[3] * tanh(static_cast<Acc>(state)));
}

// The slopes follow from the values: tanh' = 1 - tanh^2, sigmoid' = sigmoid (1 - sigmoid).
template <typename T, typename Acc, typename Index>
__global__ void lstm_step_backward(const T* __restrict__ da, const T* __restrict__ da_next,
                                   const T* __restrict__ dc_next, const T* __restrict__ gates,
                                   const T* __restrict__ c_prev, const T* __restrict__ c, T* __restrict__ dz,
                                   T* __restrict__ dc_prev, Index total, int hidden)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc one = static_cast<Acc>(1);
    const Index place = number / hidden * 4 * hidden + number % hidden;
    const Index f = place, u = f + hidden, n = u + hidden, o = n + hidden;
    const Acc forget = static_cast<Acc>(gates[f]);
    const Acc update = static_cast<Acc>(gates[u]);
    const Acc candidate = static_cast<Acc>(gates[n]);
    const Acc output = static_cast<Acc>(gates[o]);
    const Acc squashed = tanh(static_cast<Acc>(c[number]));
    const Acc da_total = static_cast<Acc>(da[number]) + static_cast<Acc>(da_next[number]);
    const Acc dc = static_cast<Acc>(dc_next[number]) + da_total * output * (one - squashed * squashed);
    dz[f] = static_cast<T>(dc * static_cast<Acc>(c_prev[number]) * forget * (one - forget));
    dz[u] = static_cast<T>(dc * candidate * update * (one - update));
    dz[n] = static_cast<T>(dc * update * (one - candidate * candidate));
    dz[o] = static_cast<T>(da_total * squashed * output * (one - output));
    dc_prev[number] = static_cast<T>(dc * forget);
}

// Gated recurrent unit. Three blocks a row: candidate, update z, reset r in gates; z, r, candidate in
// recurrent; four in bias and dz: candidate, z, r, and the candidate's recurrent product m.
// m = recurrent + bias, candidate = tanh(gates + r m), a = (1 - z) candidate + z a_prev.
template <typename T, typename Acc, typename Index>
__global__ void gru_step_forward(T* __restrict__ gates, const T* __restrict__ recurrent, const T* __restrict__ bias,
                                 const T* __restrict__ a_prev, T* __restrict__ m, T* __restrict__ a, Index total,
                                 int hidden)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const int unit = static_cast<int>(number % hidden);
    const Index place = number / hidden * 3 * hidden + unit;
    Acc value[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        const Index gate = place + (k + 1) * hidden;
        const Acc sum = static_cast<Acc>(gates[gate]) + static_cast<Acc>(recurrent[gate - hidden]) +
                        static_cast<Acc>(bias[(k + 1) * hidden + unit]);
        const T stored = static_cast<T>(logistic(sum));
        gates[gate] = stored;
        value[k] = static_cast<Acc>(stored);
    }
    const T product = static_cast<T>(static_cast<Acc>(recurrent[place + 2 * hidden]) +
                                     static_cast<Acc>(bias[3 * hidden + unit]));
    m[number] = product;
    const T candidate = static_cast<T>(tanh(static_cast<Acc>(gates[place]) + static_cast<Acc>(bias[unit]) +
                                            value[1] * static_cast<Acc>(product)));
    gates[place] = candidate;
    a[number] = static_cast<T>((static_cast<Acc>(1) - value[0]) * static_cast<Acc>(candidate) +
                               value[0] * static_cast<Acc>(a_prev[number]));
}

template <typename T, typename Acc, typename Index>
__global__ void gru_step_backward(const T* __restrict__ da, const T* __restrict__ da_next, const T* __restrict__ gates,
                                  const T* __restrict__ m, const T* __restrict__ a_prev, T* __restrict__ dz,
                                  T* __restrict__ da_prev, Index total, int hidden)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc one = static_cast<Acc>(1);
    const Index row = number / hidden;
    const Index unit = number % hidden;
    const Index place = row * 3 * hidden + unit;
    const Index to = row * 4 * hidden + unit;
    const Acc candidate = static_cast<Acc>(gates[place]);
    const Acc update = static_cast<Acc>(gates[place + hidden]);
    const Acc reset = static_cast<Acc>(gates[place + 2 * hidden]);
    const Acc da_total = static_cast<Acc>(da[number]) + static_cast<Acc>(da_next[number]);
    const Acc dn = da_total * (one - update) * (one - candidate * candidate);
    dz[to] = static_cast<T>(dn);
    dz[to + hidden] =
        static_cast<T>(da_total * (static_cast<Acc>(a_prev[number]) - candidate) * update * (one - update));
    dz[to + 2 * hidden] = static_cast<T>(dn * static_cast<Acc>(m[number]) * reset * (one - reset));
    dz[to + 3 * hidden] = static_cast<T>(dn * reset);
    da_prev[number] = static_cast<T>(da_total * update);
}
