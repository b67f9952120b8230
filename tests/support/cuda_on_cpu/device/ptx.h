// Inline PTX: source.py turns each instruction of an asm statement into a call of emu_ptx_<opcode>, its operands in
// the order of the PTX text. What is not here is an error of the compiler that names the opcode.
#pragma once

// To the nearest of 10 bits of mantissa, ties away from zero; the sign of a NaN is lost (PTX ISA, cvt).
EMU_INLINE void emu_ptx_cvt_rna_tf32_f32(unsigned& to, float from)
{
    to = from != from ? 0x7fffffffu : (emu_bits<unsigned>(from) + 0x1000u) & ~0x1fffu;
}

// D = A B + C by a warp, fragments as in the PTX ISA, section "Matrix fragments for mma".
#define EMU_MMA(opcode, kind)                                                                                    \
    EMU_INLINE void emu_ptx_mma_sync_aligned_##opcode(                                                           \
        float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3,          \
        unsigned b0, unsigned b1, float c0, float c1, float c2, float c3)                                        \
    {                                                                                                            \
        EmuFragments own = {{c0, c1, c2, c3}, {a0, a1, a2, a3}, {b0, b1}};                                       \
        emu_warp(kind, 0xffffffffu, &own, sizeof own, 0, 32);                                                    \
        d0 = own.c[0], d1 = own.c[1], d2 = own.c[2], d3 = own.c[3];                                              \
    }
EMU_MMA(m16n8k8_row_col_f32_tf32_tf32_f32, EMU_MMA_TF32)
EMU_MMA(m16n8k16_row_col_f32_bf16_bf16_f32, EMU_MMA_BF16)
EMU_MMA(m16n8k16_row_col_f32_f16_f16_f32, EMU_MMA_F16)
