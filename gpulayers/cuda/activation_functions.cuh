// The activation functions and their derivatives, as gpulayers/activations.py defines them.
// `act` is the same for all threads of a launch, so the branches cost next to nothing.

// In table.ACTIVATIONS's order.
enum Activation {
    IDENTITY,
    SIGMOID,
    RELU,
    LEAKY_RELU,
    GELU_TANH,
    GELU_ERF,
    TANH,
    AFFINE,
    ELU,
    EXPONENTIAL,
    SELU,
    HARD_SIGMOID,
    SOFTPLUS
};

// s = 1 / (1 + exp(-z)) and s (1 - s), from exp(-|z|) <= 1 alone: no overflow, no cancellation.
template <typename Acc>
__device__ __forceinline__ Acc logistic(Acc z)
{
    const Acc e = exp(-fabs(z));
    return (z < static_cast<Acc>(0) ? e : static_cast<Acc>(1)) / (static_cast<Acc>(1) + e);
}

template <typename Acc>
__device__ __forceinline__ Acc logistic_slope(Acc z)
{
    const Acc e = exp(-fabs(z));
    const Acc inverse = static_cast<Acc>(1) / (static_cast<Acc>(1) + e);
    return e * inverse * inverse;
}

// GELU z Phi(z) (Hendrycks & Gimpel, 2016, section 2). Its tanh form is z s(2u) with this u.
template <typename Acc>
__device__ __forceinline__ Acc gelu_u(Acc z)
{
    return static_cast<Acc>(0.7978845608028654) * z * (static_cast<Acc>(1) + static_cast<Acc>(0.044715) * z * z);
}

// Phi is 0 or 1 beyond +-40 in every type; cut there, or minus infinity would meet a zero. Keeps NaN.
template <typename Acc>
__device__ __forceinline__ Acc cut(Acc z)
{
    const Acc limit = static_cast<Acc>(40);
    return z < -limit ? -limit : z > limit ? limit : z;
}

// Phi(z), without cancellation in the left tail
template <typename Acc>
__device__ __forceinline__ Acc normal_cdf(Acc z)
{
    return static_cast<Acc>(0.5) * erfc(static_cast<Acc>(-0.7071067811865476) * z);
}

template <typename Acc>
__device__ __forceinline__ Acc activation_value(int act, Acc z, Acc alpha, Acc beta)
{
    const Acc zero = static_cast<Acc>(0);
    const Acc one = static_cast<Acc>(1);
    switch (act) {
    case SIGMOID: return logistic(z);
    case RELU: return z <= zero ? zero : z;  // keeps NaN
    case LEAKY_RELU: return z < zero ? alpha * z : z;
    case GELU_TANH: return (z < zero ? cut(z) : z) * logistic(2 * gelu_u(cut(z)));
    case GELU_ERF: return (z < zero ? cut(z) : z) * normal_cdf(cut(z));
    case TANH: return tanh(z);
    case AFFINE: return alpha * z + beta;
    case ELU: return z > zero ? z : alpha * expm1(z);
    case EXPONENTIAL: return exp(z);
    case SELU: return beta * (z > zero ? z : alpha * expm1(z));
    case HARD_SIGMOID: {
        const Acc line = static_cast<Acc>(0.2) * z + static_cast<Acc>(0.5);
        return line < zero ? zero : line > one ? one : line;
    }
    case SOFTPLUS: return (z > zero ? z : zero) + log1p(exp(-fabs(z)));
    default: return z;  // IDENTITY
    }
}

template <typename Acc>
__device__ __forceinline__ Acc activation_slope(int act, Acc z, Acc alpha, Acc beta)
{
    const Acc zero = static_cast<Acc>(0);
    const Acc one = static_cast<Acc>(1);
    switch (act) {
    case SIGMOID: return logistic_slope(z);
    case RELU: return z > zero ? one : zero;
    case LEAKY_RELU: return z < zero ? alpha : one;
    case GELU_TANH: {
        const Acc x = cut(z);
        const Acc du = static_cast<Acc>(0.7978845608028654) * (one + static_cast<Acc>(0.134145) * x * x);
        return logistic(2 * gelu_u(x)) + 2 * x * logistic_slope(2 * gelu_u(x)) * du;
    }
    case GELU_ERF: {
        const Acc x = cut(z);
        return normal_cdf(x) + x * static_cast<Acc>(0.3989422804014327) * exp(static_cast<Acc>(-0.5) * x * x);
    }
    case TANH: {
        const Acc t = tanh(z);
        return one - t * t;
    }
    case AFFINE: return alpha;
    case ELU: return z > zero ? one : alpha * exp(z);
    case EXPONENTIAL: return exp(z);
    case SELU: return beta * (z > zero ? one : alpha * exp(z));
    case HARD_SIGMOID: return fabs(z) <= static_cast<Acc>(2.5) ? static_cast<Acc>(0.2) : zero;
    case SOFTPLUS: return logistic(z);
    default: return one;  // IDENTITY
    }
}

// The slope told by the value y = f(z), for the functions whose value tells it (fusible.py): those that rise everywhere.
template <typename Acc>
__device__ __forceinline__ Acc slope_at_value(int act, Acc y, Acc alpha, Acc beta)
{
    const Acc zero = static_cast<Acc>(0);
    const Acc one = static_cast<Acc>(1);
    switch (act) {
    case SIGMOID: return y * (one - y);
    case RELU: return y > zero ? one : zero;
    case LEAKY_RELU: return y < zero ? alpha : one;
    case TANH: return one - y * y;
    case ELU: return y > zero ? one : y + alpha;
    case EXPONENTIAL: return y;
    case SELU: return y > zero ? beta : y + alpha * beta;
    case SOFTPLUS: return -expm1(-y);
    default: return one;  // IDENTITY
    }
}

// The function that a kernel takes along where it is said that one follows or came before: ReLU, or what is compiled in,
// -DFUSED=6 (its number), -DFUSED_ALPHA=0.3, -DFUSED_BETA=0.0 (fusible.py).
#ifndef FUSED
#define FUSED RELU
#define FUSED_ALPHA 0.0
#define FUSED_BETA 0.0
#endif

template <typename Acc>
__device__ __forceinline__ Acc fused_value(Acc z)
{
    return activation_value<Acc>(FUSED, z, static_cast<Acc>(FUSED_ALPHA), static_cast<Acc>(FUSED_BETA));
}

// What gets back through it of a gradient where it gave y; where it is shut nothing does, not even NaN.
template <typename Acc>
__device__ __forceinline__ Acc fused_gradient(Acc gradient, Acc y)
{
    if (FUSED == RELU) return y > static_cast<Acc>(0) ? gradient : static_cast<Acc>(0);
    return gradient * slope_at_value<Acc>(FUSED, y, static_cast<Acc>(FUSED_ALPHA), static_cast<Acc>(FUSED_BETA));
}
