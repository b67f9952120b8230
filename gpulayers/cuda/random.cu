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
    const Words found = philox_block(key_low, key_high, counter_low, counter_high, static_cast<Word>(block));
    const Index first = block * 4;
    words[first] = found.word[0];
    if (first + 1 < total) words[first + 1] = found.word[1];
    if (first + 2 < total) words[first + 2] = found.word[2];
    if (first + 3 < total) words[first + 3] = found.word[3];
}
