// Recurrent networks through all time steps in one launch: for sequence_rnn.cu, sequence_lstm.cu and sequence_gru.cu.
//
// What a kind of network does in a step is a cell, ahead and back; sequence_ways.cuh has the loops over the steps, which
// differ in who keeps the recurrent weights: one block in any place (sequence_any.cuh), one block in its registers
// (sequence_held.cuh, sequence_cores.cuh), or many blocks together (sequence_group.cuh, sequence_tensor.cuh).
//
// A cell is of one thread, which finishes one unit of one example at a time. `ask` reads what a step needs of them
// besides the recurrent products, long before it is needed, and does nothing with it that would have to wait; `biases`
// reads what all steps of a unit need. `go` then takes the step. A cell ahead has GATES sums and STATES, which `go` gets
// and changes: first of all what the next step multiplies. A cell back has FACTORS, the numbers of its unit that are
// multiplied, and STATES whose gradients `go` gets and changes into what does not come through the products.

#define ALL_LANES 0xffffffffu
#define SHARED_MEMORY extern __shared__ __align__(16) unsigned char memory[];

// What a load of shared memory brings at once.
template <typename Acc>
struct __align__(16) Four {
    Acc v[4];
};

template <typename Acc>
__device__ __forceinline__ void clear(Acc* __restrict__ memory, int count)
{
    for (int i = threadIdx.x; i < count; i += blockDim.x) memory[i] = static_cast<Acc>(0);
}

// Where the recurrent weights are: that of (unit, gate, term) lies where the three strides say.
template <typename T>
struct Recurrent {
    const T* values;
    int by_unit, by_gate, by_term;
};

template <typename Acc, typename T>
__device__ __forceinline__ Acc weight_of(const Recurrent<T>& w, int unit, int gate, int term)
{
    return static_cast<Acc>(w.values[unit * w.by_unit + gate * w.by_gate + term * w.by_term]);
}

// What cells ahead have in common. states (steps + 1, batch, hidden): before the first step and after each. firsts
// (batch, hidden): those before the first step, zeros unless has_first. mask (steps, batch): where it is zero a step is
// left out, and the states stay.
template <typename T, int COUNT>
struct Ahead {
    T* states[COUNT];
    const T* firsts[COUNT];
    const unsigned char* mask;
    int steps, batch, hidden;
    bool has_first, has_mask;
};

// A state before the first step; `number`: of (example, unit).
template <typename T, int COUNT>
__device__ __forceinline__ T begin(const Ahead<T, COUNT>& way, int which, long long number)
{
    const T first = way.has_first ? way.firsts[which][number] : static_cast<T>(0);
    way.states[which][number] = first;
    return first;
}

// Stores what a state is after the step of `example`, counted over all steps; rounded to that from now on.
template <typename T, int COUNT, typename Acc>
__device__ __forceinline__ void become(const Ahead<T, COUNT>& way, int which, long long example, int unit, Acc next,
                                       bool stays, Acc& state)
{
    const T stored = static_cast<T>(stays ? state : next);
    way.states[which][(example + way.batch) * way.hidden + unit] = stored;
    state = static_cast<Acc>(stored);
}

// What cells back have in common. da (steps, batch, hidden), if has_da: the gradients of the outputs. lasts and firsts
// (batch, hidden): those of the last states, bit k of has_last says whether there is number k, and of the first ones.
template <typename T, int COUNT>
struct Back {
    const T* da;
    const unsigned char* mask;
    const T* lasts[COUNT];
    T* dz;
    T* firsts[COUNT];
    int steps, batch, hidden;
    bool has_da;
    int has_last;
    bool has_mask;
    int truncate;
};

// A gate: logistic(z). Its divisor is at least one and at most two, where a quick division is as good to two units of the
// last place; the other one has a branch for very large and very small divisors, which keeps instructions apart.
__device__ __forceinline__ float gate_value(float z)
{
    const float e = exp(-fabs(z));
    return __fdividef(z < 0.0f ? e : 1.0f, 1.0f + e);
}

__device__ __forceinline__ double gate_value(double z)
{
    return logistic(z);
}

// What the mask says of a step, zero if it is left out; nothing has to wait for it yet.
template <typename Way>
__device__ __forceinline__ unsigned char taken_of(const Way& way, long long example)
{
    return way.has_mask ? way.mask[example] : 1;
}

template <typename Acc, typename T, int COUNT>
__device__ __forceinline__ Acc last_of(const Back<T, COUNT>& way, int which, long long number)
{
    return way.has_last >> which & 1 ? static_cast<Acc>(way.lasts[which][number]) : static_cast<Acc>(0);
}

template <typename T, int COUNT>
__device__ __forceinline__ T output_gradient(const Back<T, COUNT>& way, long long example, int unit)
{
    return way.has_da ? way.da[example * way.hidden + unit] : static_cast<T>(0);
}

// Stores a number of dz (steps, batch, blocks * hidden), zero if the step is left out; rounded to that from now on.
template <typename T, int COUNT, typename Acc>
__device__ __forceinline__ Acc pass_back(const Back<T, COUNT>& way, long long block, int unit, Acc found, bool stays)
{
    const T stored = static_cast<T>(stays ? static_cast<Acc>(0) : found);
    way.dz[block * way.hidden + unit] = stored;
    return static_cast<Acc>(stored);
}

// Whether nothing comes back from step t + 1: a stretch of truncated backpropagation ends after step t.
template <typename T, int COUNT>
__device__ __forceinline__ bool ends_stretch(const Back<T, COUNT>& way, int t)
{
    return way.truncate > 0 && t + 1 < way.steps && (t + 1) % way.truncate == 0;
}
