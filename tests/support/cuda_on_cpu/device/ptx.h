// Inline PTX: source.py turns each instruction of an asm statement into a call of emu_ptx_<opcode>, its operands in
// the order of the PTX text. What is not here is an error of the compiler that names the opcode.
#pragma once

// To the nearest of 10 bits of mantissa, ties away from zero; the sign of a NaN is lost (PTX ISA, cvt).
EMU_INLINE void emu_ptx_cvt_rna_tf32_f32(unsigned& to, float from)
{
    to = from != from ? 0x7fffffffu : (emu_bits<unsigned>(from) + 0x1000u) & ~0x1fffu;
}

// As above, ties to even: half a place less one is added, and one where the last place is odd. Subnormal numbers
// are rounded as they are.
EMU_INLINE void emu_ptx_cvt_rn_tf32_f32(unsigned& to, float from)
{
    const unsigned bits = emu_bits<unsigned>(from), odd = bits >> 13 & 1;
    to = from != from ? 0x7fffffffu : (bits + 0x0fffu + odd) & ~0x1fffu;
}

EMU_INLINE unsigned long long __cvta_generic_to_shared(const void* place)
{
    return emu_shared_address(place, __builtin_return_address(0));
}

// Copies that go on by themselves: of `given` bytes, zeros behind them.
EMU_UNCHECKED static void emu_ptx_cp_async_cg_shared_global(unsigned to, const void* from, int bytes, int given)
{
    emu_copy_async(to, from, bytes, given, __builtin_return_address(0));
}
EMU_UNCHECKED static void emu_ptx_cp_async_ca_shared_global(unsigned to, const void* from, int bytes, int given)
{
    emu_copy_async(to, from, bytes, given, __builtin_return_address(0));
}
EMU_INLINE void emu_ptx_cp_async_commit_group() { emu_commit_copies(); }
EMU_UNCHECKED static void emu_ptx_cp_async_wait_group(int pending)
{
    emu_wait_copies(pending, __builtin_return_address(0));
}

// Four matrices of 8 rows of 16 bytes; a row is read by the lane that says where it is.
#define EMU_LDMATRIX_X4(opcode, kind)                                                                            \
    EMU_INLINE void emu_ptx_ldmatrix_sync_aligned_m8n8_x4_##opcode(unsigned& m0, unsigned& m1, unsigned& m2,     \
                                                                   unsigned& m3, unsigned row)                   \
    {                                                                                                            \
        EmuMatrices own = *(const EmuMatrices*)emu_shared_place(row);                                            \
        emu_warp(kind, 0xffffffffu, &own, sizeof own, 0, 32);                                                    \
        m0 = own.word[0], m1 = own.word[1], m2 = own.word[2], m3 = own.word[3];                                  \
    }
EMU_LDMATRIX_X4(shared_b16, EMU_LDMATRIX)
EMU_LDMATRIX_X4(trans_shared_b16, EMU_LDMATRIX_TRANS)

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

// Products of a warpgroup: the sums, two descriptors, whether sums are added to, two signs, how the factors lie.
#define EMU_WGMMA(columns, type, kind)                                                                           \
    template <typename... Operands>                                                                              \
    EMU_UNCHECKED static void emu_ptx_wgmma_mma_async_sync_aligned_m64n##columns##k16_f32_##type##_##type(       \
        Operands&&... operands)                                                                                  \
    {                                                                                                            \
        static_assert(sizeof...(operands) == columns / 2 + 7, "operands of another product");                    \
        void* const all[] = {(void*)&operands...};                                                               \
        const auto descriptor = [&](int i) { return *(unsigned long long*)all[columns / 2 + i]; };               \
        const auto flag = [&](int i) { return *(int*)all[columns / 2 + 2 + i]; };                                \
        if (flag(0) != 1 || flag(1) != 1 || flag(2) != 1) emu_fail("wgmma", "another sign or scale than 1");     \
        emu_group_multiply(kind, columns, (float* const*)all, descriptor(0), descriptor(1), flag(3), flag(4),    \
                           __builtin_return_address(0));                                                         \
    }
EMU_WGMMA(64, bf16, EMU_MMA_BF16)
EMU_WGMMA(128, bf16, EMU_MMA_BF16)
EMU_WGMMA(64, f16, EMU_MMA_F16)
EMU_WGMMA(128, f16, EMU_MMA_F16)
EMU_INLINE void emu_ptx_wgmma_fence_sync_aligned() { emu_group_fence(); }
EMU_INLINE void emu_ptx_wgmma_commit_group_sync_aligned() { emu_group_commit(); }
EMU_UNCHECKED static void emu_ptx_wgmma_wait_group_sync_aligned(int pending)
{
    emu_group_wait(pending, __builtin_return_address(0));
}
EMU_INLINE void emu_ptx_fence_proxy_async_shared_cta() { emu_show_to_products(); }
