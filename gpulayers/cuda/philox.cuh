// Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, section 5.1): the words of
// numpy.random.Philox(key=, counter=).random_raw, a function of key and counter alone. For random.cu and dropout.cu.

typedef unsigned long long Word;

struct Words {
    Word word[4];
};

// The four words of block number `block` of a stream. NumPy counts up before each block.
__device__ __forceinline__ Words philox_block(Word key_low, Word key_high, Word counter_low, Word counter_high,
                                              Word block)
{
    const Word steps = block + 1;
    Word c0 = counter_low + steps;
    Word c1 = counter_high + (c0 < steps ? 1 : 0);
    Word c2 = 0;
    Word c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const Word high0 = __umul64hi(0xD2E7470EE14C6C93ull, c0);
        const Word high1 = __umul64hi(0xCA5A826395121157ull, c2);
        const Word low0 = 0xD2E7470EE14C6C93ull * c0;
        const Word low1 = 0xCA5A826395121157ull * c2;
        c0 = high1 ^ c1 ^ key_low;
        c1 = low1;
        c2 = high0 ^ c3 ^ key_high;
        c3 = low0;
        key_low += 0x9E3779B97F4A7C15ull;
        key_high += 0xBB67AE8584CAA73Bull;
    }
    return {{c0, c1, c2, c3}};
}
