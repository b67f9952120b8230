// A block takes two or eight examples of up to 128 units through all steps by tensor cores (from sm_80 on), in half types,
// with sums in float32. All recurrent weights are fragments in its registers from the beginning to the end: of an LSTM of
// 128 units each lane of eight warps has 128 words.
//
// A warp has 16 units. The weights are the lines of its products, the examples the eight columns of the other factor: two
// examples four times. Ahead, the lines of a tile are a gate's; back, there is one tile, and the terms are those of all
// factors. Either way a lane ends with the whole sums of units lane / 4 and 8 on, and columns lane % 4 * 2 and the next:
// the four pairs of eight examples it finishes itself, and of the four pairs of two examples, which its three neighbours
// have as well, one. So no lane waits for another's sums, and a step has one barrier.
//
// The vectors of two steps are in shared memory. The words of a run are in the order of sequence_tensor.cuh, four of
// them together for a lane; where those lie changes from two examples to the next, so that no bank is asked twice, when
// they are read or when the pairs' numbers are written one by one.

#define CORE_UNITS 128   // of a block at most
#define STAGE_PITCH 136  // numbers from one line of a gate to the next, while the weights come

template <typename T, int OUT, int IN, int EACH>
struct CoreBlock {
    using Factor = T;
    static constexpr int PAIRS = EACH / 2, UNITS = EACH > 2 ? 2 : 1;  // of a thread
    static constexpr int RUNS = CORE_UNITS / RUN<T>;  // of a vector
    static constexpr int PITCH = (IN * RUNS | 1) * RUN<T>;  // of an example's vectors: neighbours in different banks
    static constexpr int AT_ONCE = 16;  // of the LINES * CORE_UNITS / 32 numbers of a gate that a thread brings
    static constexpr int PARTS = OUT > 1 ? 1 : 4;  // of a sum, so that a product does not wait for the one before
    int lane, first_unit, first_row, batch, hidden;
    unsigned kept[RUNS * IN * 2][OUT][4];  // of half a run and a tile: the lane's words

    __device__ __forceinline__ void sit(int all_examples, int all_units)
    {
        lane = static_cast<int>(threadIdx.x) % 32;
        first_unit = static_cast<int>(threadIdx.x) / 32 * LINES;
        first_row = static_cast<int>(blockIdx.x) * EACH;
        batch = all_examples;
        hidden = all_units;
    }

    __device__ __forceinline__ int size() const { return EACH * PITCH; }

    // Which of the lane's four sums of a tile is that of a pair.
    __device__ __forceinline__ int sum_of(int pair) const { return EACH > 2 ? pair : lane % 4; }

    __device__ __forceinline__ int unit(int pair) const { return first_unit + lane / 4 + sum_of(pair) / 2 * 8; }

    __device__ __forceinline__ int example(int pair) const { return (lane % 4 * 2 + sum_of(pair) % 2) % EACH; }

    __device__ __forceinline__ int row(int pair) const { return first_row + example(pair); }

    __device__ __forceinline__ bool works(int pair) const { return unit(pair) < hidden && row(pair) < batch; }

    // Where a quarter of an example's run is.
    __device__ __forceinline__ static int place_of(int example, int run, int quarter)
    {
        return example * PITCH + run * RUN<T> + (quarter ^ example / 2) * (RUN<T> / 4);
    }

    __device__ __forceinline__ int spot(int pair, int vector) const
    {
        const int own = unit(pair);
        const int quarter = own % RUN<T> / (RUN<T> / 4);
        return place_of(example(pair), vector * RUNS + own / RUN<T>, quarter) + own % (RUN<T> / 4);
    }

    // Bring the weights to where they stay (see fragment_at), a gate at a time through `memory`. Each thread has as many
    // numbers of it, and many are on their way together: what is beyond the last unit or term is read as that one, so
    // that no branch keeps the loads apart, and is zero.
    __device__ __forceinline__ void bring(const Recurrent<T>& w, T* memory)
    {
        const int lines = static_cast<int>(blockDim.x) / 32 * LINES;
#pragma unroll
        for (int gate = 0; gate < OUT * IN; ++gate) {
#pragma unroll 1
            for (int from = threadIdx.x; from < lines * CORE_UNITS; from += AT_ONCE * blockDim.x) {
                T read[AT_ONCE];
                int line[AT_ONCE], term[AT_ONCE];
#pragma unroll
                for (int k = 0; k < AT_ONCE; ++k) {
                    const int i = from + k * static_cast<int>(blockDim.x);
                    line[k] = w.by_unit == 1 ? i % lines : i / CORE_UNITS;
                    term[k] = w.by_unit == 1 ? i / lines : i % CORE_UNITS;
                    read[k] = weight_of<T>(w, min(line[k], hidden - 1), gate, min(term[k], hidden - 1));
                }
#pragma unroll
                for (int k = 0; k < AT_ONCE; ++k)
                    memory[line[k] * STAGE_PITCH + term[k]] =
                        line[k] < hidden && term[k] < hidden ? read[k] : static_cast<T>(0);
            }
            __syncthreads();
#pragma unroll
            for (int run = 0; run < RUNS; ++run)
#pragma unroll
                for (int upper = 0; upper < 2; ++upper) {
                    const int line = first_unit + upper * 8 + lane / 4;
                    const int term = run * RUN<T> + lane % 4 * (RUN<T> / 4);
                    const Words words = *reinterpret_cast<const Words*>(memory + line * STAGE_PITCH + term);
#pragma unroll
                    for (int word = 0; word < 4; ++word)
                        kept[(run * IN + gate % IN) * 2 + word / 2][gate / IN][word % 2 * 2 + upper] = words.item[word];
                }
            __syncthreads();
        }
    }

    // The sums of the thread's pairs over the vectors in shared memory.
    __device__ __forceinline__ void sums(const T* vectors, float (&found)[PAIRS][OUT]) const
    {
        float sum[PARTS][OUT][4] = {};
        const T* const mine = vectors + place_of(lane / 4 % EACH, 0, lane % 4);
#pragma unroll
        for (int run = 0; run < RUNS; ++run) {
            if (run * RUN<T> >= hidden) break;
#pragma unroll
            for (int vector = 0; vector < IN; ++vector) {
                const Words words = *reinterpret_cast<const Words*>(mine + (vector * RUNS + run) * RUN<T>);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int i = (run * IN + vector) * 2 + half;
#pragma unroll
                    for (int m = 0; m < OUT; ++m) {
                        float(&s)[4] = sum[i % PARTS][m];
                        const unsigned(&a)[4] = kept[i][m];
                        multiply_fragments(static_cast<const T*>(nullptr), s[0], s[1], s[2], s[3], a[0], a[1], a[2],
                                           a[3], words.item[2 * half], words.item[2 * half + 1]);
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < OUT; ++m) {
            float(&s)[4] = sum[0][m];
#pragma unroll
            for (int part = 1; part < PARTS; ++part)
#pragma unroll
                for (int i = 0; i < 4; ++i) s[i] += sum[part][m][i];
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair)
                if constexpr (EACH > 2) {
                    found[pair][m] = s[pair];
                } else {  // registers have no index that is not known
                    const float lower = lane % 2 ? s[1] : s[0];
                    const float upper = lane % 2 ? s[3] : s[2];
                    found[pair][m] = lane % 4 / 2 ? upper : lower;
                }
        }
    }
};

template <int EACH>
struct InFragments {
    template <typename T, typename Acc, int OUT, int IN>
    using Block = CoreBlock<T, OUT, IN, EACH>;
};
