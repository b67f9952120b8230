// Dropout of the input of a stage within a block that trains on one example after the other; see mega_common.cuh. The masks
// are those of Generator.uniform in float32 for the whole batch: number e * size + i is that of element i of example e.

// Numbers that one block of four words gives, half a word each, the low half first.
#define NUMBERS 8

// Blocks that the mask of so many examples takes; the next mask begins behind them.
template <class S>
__device__ __forceinline__ Word masks(int examples)
{
    return (static_cast<Word>(examples) * S::dropped + NUMBERS - 1) / NUMBERS;
}

// X * scale where its number is at least p, else X * 0, in place; `kept` says which. draws: key and counter, the low word
// of each first; the mask begins `offset` blocks behind the counter. A thread takes a block, or what of it is this
// example's. threshold: p in units of 2^-24, rounded up, as the numbers are whole multiples of that.
template <class S>
__device__ void drop(float* shared, const Word* draws, Word offset, int example)
{
    const Word begin = static_cast<Word>(example) * S::dropped, end = begin + S::dropped;
    unsigned char* kept = reinterpret_cast<unsigned char*>(shared + S::kept);
    for (Word block = begin / NUMBERS + this_thread(); block * NUMBERS < end; block += THREADS) {
        const Words words = philox_block(draws[0], draws[1], draws[2], draws[3], offset + block);
#pragma unroll
        for (int i = 0; i < NUMBERS; ++i) {
            if (block * NUMBERS + i < begin || block * NUMBERS + i >= end) continue;
            const int number = static_cast<int>(block * NUMBERS + i - begin);
            const int place = S::first + number / S::across * S::pitch + number % S::across;
            const unsigned half = static_cast<unsigned>(words.word[i / 2] >> (i % 2 * 32));
            const bool stays = (half >> 8) >= static_cast<unsigned>(S::threshold);
            shared[place] *= stays ? S::scale : 0.0f;
            kept[number] = stays;
        }
    }
}

// What the gradient of input `number` is multiplied by to become that before the dropout, if there is one, and the
// activation; `value` is the input.
template <class S>
__device__ __forceinline__ float slope_before(const float* shared, int number, float value)
{
    if constexpr (S::dropped > 0) {
        const bool stays = reinterpret_cast<const unsigned char*>(shared + S::kept)[number];
        return stays ? S::scale * slope_at<S::before>(value / S::scale) : 0.0f;
    }
    return slope_at<S::before>(value);
}
