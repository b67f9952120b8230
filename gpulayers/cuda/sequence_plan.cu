// What a planned step does before and after the way through a recurrent network's steps: one launch each.
#include "common.cuh"
#include "words.cuh"
#include "activation_functions.cuh"
#include "tile.cuh"
#include "fragments.cuh"
#include "copies.cuh"
#include "stages.cuh"
#include "pipeline.cuh"
#include "warpgroup.cuh"
#include "group.cuh"
#include "large.cuh"

template <typename T>
__device__ __forceinline__ const T* pick(int k, const T* first, const T* second, const T* third, const T* fourth)
{
    return k == 0 ? first : k == 1 ? second : k == 2 ? third : fourth;
}

// turned (steps, batch, channels) = x (batch, channels, steps). The `gates` weights w (hidden + channels, hidden) side
// by side, the rows for the state in `recurrent`, those for the input in `input`, there `shift` gates on; b one after
// the other in `bias`. total = x_size + the numbers of weights and biases. One thread a number.
template <typename T, typename Index>
__global__ void sequence_prepare(const T* __restrict__ x, const T* __restrict__ w0, const T* __restrict__ w1,
                                 const T* __restrict__ w2, const T* __restrict__ w3, const T* __restrict__ b0,
                                 const T* __restrict__ b1, const T* __restrict__ b2, const T* __restrict__ b3,
                                 T* __restrict__ turned, T* __restrict__ recurrent, T* __restrict__ input,
                                 T* __restrict__ bias, Index total, Index x_size, int batch, int channels, int steps,
                                 int hidden, int gates, int shift)
{
    const Index number = thread_number<Index>();
    if (number >= total) return;
    if (number < x_size) {
        const Index pair = number / channels;  // (t, example)
        turned[number] = x[(pair % batch * channels + number % channels) * steps + pair / batch];
        return;
    }
    const Index place = number - x_size;
    const Index width = gates * hidden;
    const int row = static_cast<int>(place / width);
    if (row >= hidden + channels) {
        const int behind = static_cast<int>(place - (hidden + channels) * width);
        bias[behind] = pick(behind / hidden, b0, b1, b2, b3)[behind % hidden];
        return;
    }
    const int gate = static_cast<int>(place % width) / hidden;
    const Index from = static_cast<Index>(row) * hidden + place % hidden;
    if (row < hidden)
        recurrent[place] = pick(gate, w0, w1, w2, w3)[from];
    else
        input[place - hidden * width] = pick((gate + shift) % gates, w0, w1, w2, w3)[from];
}

// The gradients of all parameters in `parts` of the terms, the rows of all steps. A part of `grads` has for each gate
// the rows of its weight, (hidden + inputs, hidden), and its bias below them; then, if extra >= 0, one more bias, of that
// block of dz. a (terms, hidden) and x (terms, inputs) are what the steps began with, dz is (terms, blocks * hidden).
// turn: a gated recurrent unit, whose gates z, r, n have the blocks 1, 2, 3 from the state, 1, 2, 0 from the input.
template <typename T, typename Acc, typename Tile>
__global__ void sequence_weight_grad(const T* __restrict__ a, const T* __restrict__ x, const T* __restrict__ dz,
                                     Acc* __restrict__ grads, int terms, int hidden, int inputs, int span, int parts,
                                     int gates, int blocks, int turn, int extra)
{
    constexpr int HEIGHT = Tile::HEIGHT, WIDTH = Tile::WIDTH;
    const int across = (hidden + WIDTH - 1) / WIDTH;
    const int state_tiles = (hidden + HEIGHT - 1) / HEIGHT * across;
    const int input_tiles = (inputs + HEIGHT) / HEIGHT * across;
    const long long gate_size = static_cast<long long>(hidden + inputs + 1) * hidden;
    const long long part_size = gates * gate_size + (extra >= 0 ? hidden : 0);
    const int part = static_cast<int>(blockIdx.x) % parts;
    const int from = part * span;
    const int count = terms - from < span ? terms - from : span;

    int tile = static_cast<int>(blockIdx.x) / parts;
    int block = extra;
    long long place = gates * gate_size;
    Matrix<T, Acc, Lines> left = {x, 0, 0, 0, 0, Lines()};  // nothing but ones
    if (tile < gates * state_tiles) {
        const int gate = tile / state_tiles;
        tile %= state_tiles;
        block = gate + turn;
        place = gate * gate_size;
        left = {a + static_cast<long long>(from) * hidden, hidden, 1, hidden, -1, Lines()};
    } else if (tile < gates * (state_tiles + input_tiles)) {
        const int gate = (tile - gates * state_tiles) / input_tiles;
        tile = (tile - gates * state_tiles) % input_tiles;
        block = (gate + turn) % gates;
        place = gate * gate_size + static_cast<long long>(hidden) * hidden;
        left = {x + static_cast<long long>(from) * inputs, inputs, 1, inputs, inputs, Lines()};
    } else {
        tile -= gates * (state_tiles + input_tiles);
    }
    const int lines = left.lines + (left.ones >= 0 ? 1 : 0);
    const T* const rows = dz + static_cast<long long>(from) * blocks * hidden + block * hidden;
    const Matrix<T, Acc, Lines> right = {rows, hidden, 1, blocks * hidden, -1, Lines()};
    const Target<T, Acc> target = {nullptr, grads + part * part_size + place, nullptr, nullptr, nullptr, lines, hidden,
                                   false,   false,                            false,   false};
    const Share share = {tile / across, tile % across, 0, 2};  // one part of several: its sums stay what they are
    work_out<T, Acc, Tile>(share, left, right, target, count, count);
}
