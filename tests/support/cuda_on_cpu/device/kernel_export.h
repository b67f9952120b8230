// EMU_EXPORT(id, kernel<...>) gives a kernel two C symbols: emu_run_<id>, which calls it with
// arguments behind void pointers, and emu_signature_<id>, its parameter types and sizes.
#pragma once

template <typename F> struct emu_kernel;
template <typename... Parameter> struct emu_kernel<void (*)(Parameter...)> {
    template <int... I> struct sequence {};
    template <int N, int... I> struct count_to : count_to<N - 1, N - 1, I...> {};
    template <int... I> struct count_to<0, I...> { typedef sequence<I...> type; };

    template <int... I>
    EMU_UNCHECKED static void call(void (*kernel)(Parameter...), void** arguments, sequence<I...>)
    {
        kernel(*(Parameter*)arguments[I]...);
    }
    EMU_UNCHECKED static void run(void (*kernel)(Parameter...), void** arguments)
    {
        call(kernel, arguments, typename count_to<sizeof...(Parameter)>::type());
    }
    static const char* signature(int* count, int* sizes)
    {
        int size_of[] = {(int)sizeof(Parameter)..., 0};
        *count = sizeof...(Parameter);
        for (int i = 0; i < *count; ++i) sizes[i] = size_of[i];
        return __PRETTY_FUNCTION__;  // "... [with Parameter = {const float*, int}]"
    }
};

#define EMU_VISIBLE extern "C" __attribute__((visibility("default")))
#define EMU_EXPORT(id, ...)                                                         \
    EMU_VISIBLE EMU_UNCHECKED void emu_run_##id(void** emu_arguments)               \
    {                                                                               \
        auto emu_entry = &__VA_ARGS__;                                              \
        emu_kernel<decltype(emu_entry)>::run(emu_entry, emu_arguments);             \
    }                                                                               \
    EMU_VISIBLE const char* emu_signature_##id(int* emu_count, int* emu_sizes)      \
    {                                                                               \
        auto emu_entry = &__VA_ARGS__;                                              \
        return emu_kernel<decltype(emu_entry)>::signature(emu_count, emu_sizes);    \
    }
