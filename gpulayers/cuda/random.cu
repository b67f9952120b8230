// Random words, the same as on the CPU.
#include "common.cuh"
#include "philox.cuh"

// One thread works out one block of four words; total = words.size.
template <typename Index>
__global__ void philox_words(Word* __restrict__ words, Index total, Word key_low, Word key_high, Word counter_low,
                             Word counter_high)
{
    const Index block = thread_number<Index>();
    if (block > (total - 1) / 4) return;
    Word found[4];
    philox_block(key_low, key_high, counter_low, counter_high, static_cast<Word>(block), found);
    const Index first = block * 4;
    words[first] = found[0];
    if (first + 1 < total) words[first + 1] = found[1];
    if (first + 2 < total) words[first + 2] = found[2];
    if (first + 3 < total) words[first + 3] = found[3];
}
