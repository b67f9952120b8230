// Optimizer rules, in place on the parameter and its state. One thread an element; total = param.size.
// The constants are worked out on the host in float64 and rounded once.
#include "common.cuh"

// velocity = momentum * velocity + lr * grad;  param -= velocity
template <typename T, typename Acc, typename Index>
__global__ void sgd_update(T* __restrict__ param, const T* __restrict__ grad, T* __restrict__ velocity, Index total,
                           Acc lr, Acc momentum)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc step = momentum * static_cast<Acc>(velocity[number]) + lr * static_cast<Acc>(grad[number]);
    velocity[number] = static_cast<T>(step);
    param[number] = static_cast<T>(static_cast<Acc>(param[number]) - step);
}

// cache += grad^2;  param -= lr * grad / (sqrt(cache) + eps)
template <typename T, typename Acc, typename Index>
__global__ void adagrad_update(T* __restrict__ param, const T* __restrict__ grad, T* __restrict__ cache, Index total,
                               Acc lr, Acc eps)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc g = static_cast<Acc>(grad[number]);
    const Acc c = static_cast<Acc>(cache[number]) + g * g;
    cache[number] = static_cast<T>(c);
    param[number] = static_cast<T>(static_cast<Acc>(param[number]) - lr * g / (sqrt(c) + eps));
}

// cache = decay * cache + (1 - decay) * grad^2;  param -= lr * grad / (sqrt(cache) + eps);  rest = 1 - decay
template <typename T, typename Acc, typename Index>
__global__ void rmsprop_update(T* __restrict__ param, const T* __restrict__ grad, T* __restrict__ cache, Index total,
                               Acc lr, Acc decay, Acc rest, Acc eps)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc g = static_cast<Acc>(grad[number]);
    const Acc c = decay * static_cast<Acc>(cache[number]) + rest * (g * g);
    cache[number] = static_cast<T>(c);
    param[number] = static_cast<T>(static_cast<Acc>(param[number]) - lr * g / (sqrt(c) + eps));
}

// mean = decay1 * mean + rest1 * grad;  var = decay2 * var + rest2 * grad^2;
// param -= step * mean / (sqrt(var) * scale + eps)
// with rest = 1 - decay, step = lr / (1 - decay1^t), scale = 1 / sqrt(1 - decay2^t)
template <typename T, typename Acc, typename Index>
__global__ void adam_update(T* __restrict__ param, const T* __restrict__ grad, T* __restrict__ mean,
                            T* __restrict__ var, Index total, Acc decay1, Acc rest1, Acc decay2, Acc rest2, Acc step,
                            Acc scale, Acc eps)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    const Acc g = static_cast<Acc>(grad[number]);
    const Acc m = decay1 * static_cast<Acc>(mean[number]) + rest1 * g;
    const Acc v = decay2 * static_cast<Acc>(var[number]) + rest2 * (g * g);
    mean[number] = static_cast<T>(m);
    var[number] = static_cast<T>(v);
    param[number] = static_cast<T>(static_cast<Acc>(param[number]) - step * m / (sqrt(v) * scale + eps));
}
