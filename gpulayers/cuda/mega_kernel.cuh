// Training steps of a small network, one after the other, in one cooperative launch (Gupta, Stuart & Owens, "A study of
// persistent threads style GPU programming", 2012): a block takes an example through all layers and back in its shared
// memory, then the blocks meet, each sums up the gradients of the parameters that it owns and updates them, they meet
// again, and the next step begins. Where batch normalisation needs all examples, they meet too. mega_source.py puts the
// network in the place of the lines that begin with //:.
#include "common.cuh"
#include "activation_functions.cuh"
#include "barrier.cuh"
#include "philox.cuh"
#include "mega_common.cuh"
#include "mega_drop.cuh"
#include "mega_conv.cuh"
#include "mega_dense.cuh"
#include "mega_norm.cuh"
#include "mega_update.cuh"

//: constants

// images, labels: all that there are; order: which of them come one after the other, `begin` of which have been used; the
// last step may have fewer than `batch` examples, for `total` of the order in all. factors: what bytes are multiplied by
// in each channel, and what is added then. rates: learning rates of each step, `rates_pitch` apart; updates: steps done
// before. still: parameters that do not learn, running statistics among them. record: loss and hits of a step in row
// `done % slots`; `done` and `position` are moved on. outputs: of the last step. draws: key and counter of the random
// numbers, moved on. results: loss and hit of each example; saved, partials: what blocks leave for one another and, of
// their examples, for themselves; arrived: see `arrive`.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    train_steps(const Pixel* __restrict__ images, const long long* __restrict__ labels, const int* __restrict__ order,
                const float* __restrict__ factors, float* param, float* still, float* first, float* second,
                const float* __restrict__ rates, float* outputs, float* record, int* done, int* position, Word* draws,
                float* results, float* saved, float* partials, unsigned* arrived, int begin, int total, int batch, int steps,
                int updates, int rates_pitch, int slots, int rule, float a, float b, float c, float d, float log_a,
                float log_c, float eps, float decay)
{
    extern __shared__ __align__(16) float shared[];
    const int recorded = done[0];
    Word drawn = 0;  // blocks of random words that the steps before took
    for (int i = threadIdx.x; i < SHARED; i += THREADS) shared[i] = 0.0f;
    __syncthreads();
    // An image is there before its turn: the next one is fetched as soon as the last one has done its part.
    const auto fetch = [&](int place) {
        load_image<Image>(shared, images + static_cast<long long>(order[place]) * Image::size, factors);
    };
    const auto meet = [&] { wait(arrived, arrive(arrived, blockIdx.x == 0, gridDim.x)); };
    if (blockIdx.x < min(batch, total - begin)) fetch(begin + blockIdx.x);
    for (int step = 0; step < steps; ++step) {
        const int from = begin + step * batch;
        const int examples = min(batch, total - from);
        const int blocks = min(static_cast<int>(gridDim.x), examples);  // of them have an example
        const bool several = examples > gridDim.x;                      // and some of them several
        const float scale = MEAN ? 1.0f / static_cast<float>(examples) : 1.0f;
        //: load
        __syncthreads();
        //: before
        for (int example = blockIdx.x; example < examples; example += gridDim.x) {
            const long long label = labels[order[from + example]];  // there when it is needed
            float* own = saved + static_cast<long long>(example) * SAVED;
            //: forward
            cross_entropy<Last>(shared, label, scale, results + 2 * example, outputs + example * Last::outputs);
            __syncthreads();
            //: backward
            if constexpr (!PARTS)
                if (example + gridDim.x < examples) fetch(from + example + gridDim.x);
            __syncthreads();
        }
        //: after
        //: give
        //: drawn
        meet();
        const float t = static_cast<float>(updates + step + 1);
        const Update u{param, first, second, rates + step * rates_pitch, rule, a, b, c, d, eps, decay,
                       -expm1(t * log_a), -expm1(t * log_c)};
        for (int unit = blockIdx.x; unit < UPDATES; unit += gridDim.x) {
            //: update
        }
        if (blockIdx.x == gridDim.x - 1)
            finish_step(shared + SCRATCH, results, examples, scale, record + 2 * ((recorded + step) % slots));
        const unsigned before = arrive(arrived, blockIdx.x == 0, gridDim.x);
        const int next = from + batch + blockIdx.x;
        if (blockIdx.x < batch && next < total) fetch(next);
        wait(arrived, before);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        position[0] = min(begin + steps * batch, total);
        done[0] = recorded + steps;
        draws[2] += drawn;
        if (draws[2] < drawn) draws[3] += 1;
    }
}
