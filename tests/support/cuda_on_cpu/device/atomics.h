// Atomics. All CUDA threads share one OS thread and switch only at calls into the runtime,
// so a plain read-modify-write after emu_atomic() cannot be interrupted.
#pragma once

template <typename T> struct emu_identity { typedef T type; };  // keeps T from being deduced twice

#define EMU_ATOMIC(name, updated)                                                       \
    template <typename T>                                                               \
    EMU_UNCHECKED static T name(T* address, typename emu_identity<T>::type value)       \
    {                                                                                   \
        emu_atomic(address, sizeof(T), __builtin_return_address(0));                    \
        T old = *address;                                                               \
        *address = (T)(updated);                                                        \
        return old;                                                                     \
    }
EMU_ATOMIC(atomicAdd, old + value)
EMU_ATOMIC(atomicSub, old - value)
EMU_ATOMIC(atomicExch, value)
EMU_ATOMIC(atomicMin, value < old ? value : old)
EMU_ATOMIC(atomicMax, old < value ? value : old)
EMU_ATOMIC(atomicAnd, old & value)
EMU_ATOMIC(atomicOr, old | value)
EMU_ATOMIC(atomicXor, old ^ value)
EMU_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMU_ATOMIC(atomicDec, (old == 0 || old > value) ? value : old - 1)

template <typename T>
EMU_UNCHECKED static T atomicCAS(T* address, typename emu_identity<T>::type expected,
                                 typename emu_identity<T>::type value)
{
    emu_atomic(address, sizeof(T), __builtin_return_address(0));
    T old = *address;
    if (memcmp(&old, &expected, sizeof(T)) == 0) *address = value;
    return old;
}
