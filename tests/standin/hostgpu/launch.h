// Describe and start kernels from outside; report what the sanitizers find.
#pragma once
#include <cstddef>
#include <type_traits>
#include <utility>

namespace standin {

// One letter and the size, as NumPy writes dtypes; '?' for what has no such name.
template <class T> static void describe(char*& out) {
    using Bare = std::remove_cv_t<T>;
    if constexpr (std::is_pointer_v<Bare>) {
        *out++ = 'P';
        using Item = std::remove_pointer_t<Bare>;
        if constexpr (std::is_void_v<std::remove_cv_t<Item>>) {
            *out++ = '?';
        } else {
            describe<Item>(out);
            return;
        }
    } else if constexpr (std::is_same_v<Bare, bool>) {
        out += sprintf(out, "b1");
    } else if constexpr (std::is_arithmetic_v<Bare>) {
        char kind = std::is_floating_point_v<Bare> ? 'f' : std::is_signed_v<Bare> ? 'i' : 'u';
        out += sprintf(out, "%c%zu", kind, sizeof(T));
    } else {
        *out++ = '?';
    }
    *out++ = ',';
}

template <class... A> struct Kernel {
    static inline void (*function)(A...);
    static inline void** arguments;
    template <size_t... I> static void call(std::index_sequence<I...>) {
        function(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
    static void body() { call(std::index_sequence_for<A...>{}); }
    static void signature(char* out) {
        (describe<A>(out), ...);
        *out = 0;
    }
};

template <class... A> static Kernel<A...> kernel(void (*function)(A...), void** arguments) {
    Kernel<A...>::function = function;
    Kernel<A...>::arguments = arguments;
    return {};
}

struct Place {
    const char* file;
    unsigned line, column;
};

}  // namespace standin

#define STANDIN_KERNEL(name)                                                                 \
    extern "C" void standin_signature_##name(char* out) {                                    \
        standin::kernel(&name, nullptr).signature(out);                                      \
    }                                                                                        \
    extern "C" void standin_launch_##name(const unsigned* grid, const unsigned* block,       \
                                          size_t shared, void** arguments, char* text,       \
                                          size_t text_size) {                                \
        auto kernel = standin::kernel(&name, arguments);                                     \
        standin::run_grid({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},       \
                          shared, &kernel.body, text, text_size);                            \
    }

// Called by instrumented code. Each data record begins with the place in the source.
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(
    void* place, void* pointer) {
    standin::fail(pointer ? "misaligned access" : "access through a null pointer",
                  static_cast<standin::Place*>(place)->line);
}
extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(
    void* place, void*) {
    standin::fail("index outside an array of known length",
                  static_cast<standin::Place*>(place)->line);
}
