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

template <typename Acc>
__device__ __forceinline__ Acc sigmoid(Acc z)
{
    return static_cast<Acc>(1) / (static_cast<Acc>(1) + exp(-z));
}

// tanh(sqrt(2 / pi) * (z + 0.044715 z^3)): Hendrycks & Gimpel (2016), section 2
template <typename Acc>
__device__ __forceinline__ Acc gelu_inner_tanh(Acc z)
{
    return tanh(static_cast<Acc>(0.7978845608028654) * (z + static_cast<Acc>(0.044715) * z * z * z));
}

template <typename Acc>
__device__ __forceinline__ Acc activation_value(int act, Acc z, Acc alpha, Acc beta)
{
    const Acc zero = static_cast<Acc>(0);
    const Acc one = static_cast<Acc>(1);
    const Acc half = static_cast<Acc>(0.5);
    switch (act) {
    case SIGMOID: return sigmoid(z);
    case RELU: return z <= zero ? zero : z;  // keeps NaN
    case LEAKY_RELU: return z < zero ? alpha * z : z;
    case GELU_TANH: return half * z * (one + gelu_inner_tanh(z));
    case GELU_ERF: return half * z * (one + erf(z * static_cast<Acc>(0.7071067811865476)));
    case TANH: return tanh(z);
    case AFFINE: return alpha * z + beta;
    case ELU: return z > zero ? z : alpha * expm1(z);
    case EXPONENTIAL: return exp(z);
    case SELU: return beta * (z > zero ? z : alpha * expm1(z));
    case HARD_SIGMOID: {
        const Acc line = static_cast<Acc>(0.2) * z + half;
        return line < zero ? zero : line > one ? one : line;
    }
    case SOFTPLUS: return (z > zero ? z : zero) + log1p(exp(-fabs(z)));
    default: return z;
    }
}

template <typename Acc>
__device__ __forceinline__ Acc activation_slope(int act, Acc z, Acc alpha, Acc beta)
{
    const Acc zero = static_cast<Acc>(0);
    const Acc one = static_cast<Acc>(1);
    const Acc half = static_cast<Acc>(0.5);
    switch (act) {
    case SIGMOID: {
        const Acc s = sigmoid(z);
        return s * (one - s);
    }
    case RELU: return z > zero ? one : zero;
    case LEAKY_RELU: return z < zero ? alpha : one;
    case GELU_TANH: {
        const Acc t = gelu_inner_tanh(z);
        const Acc inner = static_cast<Acc>(0.7978845608028654) * (one + static_cast<Acc>(0.134145) * z * z);
        return half * (one + t) + half * z * (one - t * t) * inner;
    }
    case GELU_ERF:
        return half * (one + erf(z * static_cast<Acc>(0.7071067811865476))) +
               z * static_cast<Acc>(0.3989422804014327) * exp(-half * z * z);
    case TANH: {
        const Acc t = tanh(z);
        return one - t * t;
    }
    case AFFINE: return alpha;
    case ELU: return z > zero ? one : alpha * exp(z);
    case EXPONENTIAL: return exp(z);
    case SELU: return beta * (z > zero ? one : alpha * exp(z));
    case HARD_SIGMOID: {
        const Acc line = static_cast<Acc>(0.2) * z + half;
        return line > zero && line < one ? static_cast<Acc>(0.2) : zero;
    }
    case SOFTPLUS: return sigmoid(z);
    default: return one;
    }
}
