// What g++ -fsanitize=thread,undefined calls before every memory access of a kernel and at every
// undefined operation. These definitions stand in for the sanitizers' own libraries.
#ifdef EMU_CHECK
#include "runtime.h"

#define EMU_SITE (uintptr_t)__builtin_return_address(0)
#define EMU_READ(p, bytes) emu::checker_access((uintptr_t)(p), bytes, emu::AccessType::READ, EMU_SITE)
#define EMU_READ_VOLATILE(p, bytes) \
    emu::checker_access((uintptr_t)(p), bytes, emu::AccessType::READ, EMU_SITE, true)
#define EMU_WRITE(p, bytes) emu::checker_access((uintptr_t)(p), bytes, emu::AccessType::WRITE, EMU_SITE)
#define EMU_ACCESS_HOOKS(n) \
    void __tsan_read##n(void* p) { EMU_READ(p, n); } \
    void __tsan_write##n(void* p) { EMU_WRITE(p, n); } \
    void __tsan_unaligned_read##n(void* p) { EMU_READ(p, n); } \
    void __tsan_unaligned_write##n(void* p) { EMU_WRITE(p, n); } \
    void __tsan_volatile_read##n(void* p) { EMU_READ_VOLATILE(p, n); } \
    void __tsan_volatile_write##n(void* p) { EMU_WRITE(p, n); } \
    void __tsan_unaligned_volatile_read##n(void* p) { EMU_READ_VOLATILE(p, n); } \
    void __tsan_unaligned_volatile_write##n(void* p) { EMU_WRITE(p, n); }

struct EmuSourceLocation {
    const char* file;
    uint32_t line, column;
};
#define EMU_UNDEFINED(handler, kind, then) \
    void __ubsan_handle_##handler(EmuSourceLocation* at, ...) \
    { \
        emu::report(kind, (void*)EMU_SITE, nullptr, #handler " at %s:%u:%u", at->file, at->line, at->column); \
        then; \
    }
#define EMU_GO_ON (void)0

extern "C" {
EMU_ACCESS_HOOKS(1)
EMU_ACCESS_HOOKS(2)
EMU_ACCESS_HOOKS(4)
EMU_ACCESS_HOOKS(8)
EMU_ACCESS_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { EMU_READ(p, bytes); }
void __tsan_write_range(void* p, size_t bytes) { EMU_WRITE(p, bytes); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

EMU_UNDEFINED(add_overflow, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(sub_overflow, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(mul_overflow, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(negate_overflow, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(shift_out_of_bounds, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(float_cast_overflow, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(pointer_overflow, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(load_invalid_value, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(invalid_builtin, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(nonnull_arg, "undefined-behaviour", EMU_GO_ON)
EMU_UNDEFINED(vla_bound_not_positive, "undefined-behaviour", EMU_GO_ON)
// Going on after these would crash the process or overwrite the stack.
EMU_UNDEFINED(divrem_overflow, "undefined-behaviour", emu::end_thread())
EMU_UNDEFINED(out_of_bounds, "undefined-behaviour", emu::end_thread())
EMU_UNDEFINED(builtin_unreachable, "undefined-behaviour", emu::end_thread())
EMU_UNDEFINED(missing_return, "undefined-behaviour", emu::end_thread())
EMU_UNDEFINED(type_mismatch_v1, "misaligned-access", emu::end_thread())
}
#endif
