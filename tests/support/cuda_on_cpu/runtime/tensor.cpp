// Tensor-core products of a warp (mma.sync), from the fragments of its lanes, and ldmatrix.
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace emu {

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_half(uint32_t bits)
{
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return sign * (fraction ? NAN : INFINITY);
    return sign * (exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24));
}

// The two numbers of a word of 16-bit ones, or the one of a word of TF32, whose low 13 bits the hardware ignores.
static float unpacked(int kind, uint32_t word, int half)
{
    if (kind == EMU_MMA_TF32) return from_bits(word & ~0x1fffu);
    const uint32_t bits = half ? word >> 16 : word & 0xffff;
    return kind == EMU_MMA_BF16 ? from_bits(bits << 16) : from_half(bits);
}

float half_number(int kind, uint16_t bits) { return unpacked(kind, bits, 0); }

// PTX ISA, "Matrix fragments for mma.m16n8k8" (.tf32) and "... mma.m16n8k16" (.f16, .bf16): with g = lane / 4 and
// t = lane % 4, word i of A is at row g + 8 (i % 2), word i of B at column g, and both at word t + 4 i' of the terms
// (i' = i / 2 for A, i for B); number i of C at row g + 8 (i / 2) and column 2 t + i % 2.
void multiply_fragments(int kind, EmuFragments* lanes)
{
    const int per_word = kind == EMU_MMA_TF32 ? 1 : 2;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < per_word; ++half) {
            for (int i = 0; i < 4; ++i)
                a[g + 8 * (i % 2)][(t + 4 * (i / 2)) * per_word + half] = unpacked(kind, lanes[lane].a[i], half);
            for (int i = 0; i < 2; ++i) b[(t + 4 * i) * per_word + half][g] = unpacked(kind, lanes[lane].b[i], half);
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
            double sum = lanes[lane].c[i];
            for (int k = 0; k < 8 * per_word; ++k) sum += (double)a[row][k] * b[k][col];
            lanes[lane].c[i] = (float)sum;
        }
}

// PTX ISA, "ldmatrix": lane l has read row l % 8 of matrix l / 8; of matrix m it gets word l % 4 of row l / 4, or of the
// transpose, whose numbers have 16 bits.
void exchange_rows(int kind, EmuMatrices* lanes)
{
    uint16_t matrix[4][8][8];
    for (int lane = 0; lane < 32; ++lane) memcpy(matrix[lane / 8][lane % 8], lanes[lane].word, 16);
    for (int lane = 0; lane < 32; ++lane)
        for (int m = 0; m < 4; ++m) {
            const int line = lane / 4, first = lane % 4 * 2;
            const bool transposed = kind == EMU_LDMATRIX_TRANS;
            const uint32_t low = transposed ? matrix[m][first][line] : matrix[m][line][first];
            const uint32_t high = transposed ? matrix[m][first + 1][line] : matrix[m][line][first + 1];
            lanes[lane].word[m] = low | high << 16;
        }
}

}  // namespace emu
