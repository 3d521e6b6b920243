// The module: functions that write into arrays allocated and checked by mpicnn/ops/native.py.

#include "common.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

// glibc maps blocks of more than some MB anew for every array and gives them back with it, so that
// the kernel clears each page of each large result. Results have the same sizes in every step: kept
// in the heap, they are found there again.
static void keep_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

NB_MODULE(MPICNN_MODULE, m) {
  // Raised with every change of a signature: a source tree may meet a module built from another.
  m.attr("ABI") = 8;

  keep_memory();
  m.def("set_threads", [](int n) { thread_count = n; });
  // The best variant that this CPU runs: 4 for _mpicnn_core_v4, 3 for _mpicnn_core_v3, 1 for the
  // general one.
  m.def("x86_64_level", [] {
#if defined(__x86_64__)
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    return !v3 ? 1 : !v4 ? 3 : 4;
#else
    return 1;
#endif
  });

  bind_conv(m);
  bind_linear(m);
  bind_products(m);
  bind_pool(m);
  bind_lrn(m);
  bind_channel(m);
  bind_elementwise(m);
  bind_activations(m);
  bind_dropout(m);
}
