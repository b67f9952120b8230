// Dropout inside a planned step: its random numbers are those of Generator.uniform in float32, from a stream whose key
// and counter lie on the device, so that a captured step goes on with it by itself.
#include "common.cuh"
#include "philox.cuh"

// Numbers that one block of four words gives, half a word each, the low half first.
#define NUMBERS 8

// draws: key and counter, the low word of each first. The numbers begin `offset` blocks behind the counter.
// kept = [number >= p], and [x > 0] where x is the output of a ReLU (masked); y = x * scale where number >= p, else
// x * 0. One thread a block; total = x.size.
template <typename T, typename Acc, typename Index>
__global__ void dropout_forward(const T* __restrict__ x, const Word* __restrict__ draws, T* __restrict__ y,
                                unsigned char* __restrict__ kept, Index total, Index offset, int masked, Acc p,
                                Acc scale)
{
    const Index block = thread_number<Index>();
    const Words words = philox_block(draws[0], draws[1], draws[2], draws[3], static_cast<Word>(offset) + block);
    const Index first = block * NUMBERS;
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) {
        if (first + i >= total) return;
        const unsigned int half = static_cast<unsigned int>(words.word[i / 2] >> (i % 2 * 32));
        const bool stays = static_cast<Acc>(half >> 8) * static_cast<Acc>(5.9604644775390625e-8f) >= p;  // 2^-24
        const Acc value = static_cast<Acc>(x[first + i]);
        y[first + i] = static_cast<T>(value * (stays ? scale : static_cast<Acc>(0)));
        kept[first + i] = stays && (!masked || value > static_cast<Acc>(0));
    }
}

// dx = dy * scale where kept, else dy * 0. The counter goes on by the blocks that the forward pass took: nothing of the
// step reads it any more.
template <typename T, typename Acc, typename Index>
__global__ void dropout_backward(const T* __restrict__ dy, const unsigned char* __restrict__ kept,
                                 T* __restrict__ dx, Word* __restrict__ draws, Index total, Acc scale)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    dx[number] = static_cast<T>(static_cast<Acc>(dy[number]) * (kept[number] ? scale : static_cast<Acc>(0)));
    if (number > 0) return;
    const Word blocks = static_cast<Word>((total - 1) / NUMBERS) + 1;
    draws[2] += blocks;
    if (draws[2] < blocks) draws[3] += 1;
}
