// What every kernel file shares: the array types of the bindings and the loop over threads.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace nb = nanobind;
using i64 = std::int64_t;

template <class T> using In = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <class T> using Out = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

// One thread until the caller says otherwise: MPI ranks share a node and must not each take it all.
inline std::atomic<int> thread_count{1};

constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// Calls f(i, scratch) for 0 <= i < n on the threads of the pool, where scratch holds `elements` of T
// for the calling thread. What f(i) computes may not depend on the thread that computes it: results
// are then the same bits on any number of threads.
template <class T, class F> void parallel_for(i64 n, i64 elements, F &&f) {
  const int threads = int(std::min<i64>(thread_count, n));
  // A cache line of distance keeps two threads' scratch apart. Allocated here because an exception
  // must not leave a parallel region.
  const i64 stride = elements ? elements + 64 / i64(sizeof(T)) : 0;
  std::unique_ptr<T[]> scratch(new T[stride * std::max(threads, 1)]);
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (i64 i = 0; i < n; ++i) f(i, scratch.get() + stride * omp_get_thread_num());
    return;
  }
#endif
  for (i64 i = 0; i < n; ++i) f(i, scratch.get());
}

// Calls f(begin, end) for consecutive pieces of 0..n, each worth a thread's while.
template <class F> void parallel_ranges(i64 n, F &&f) {
  constexpr i64 piece = 1 << 15;
  parallel_for<char>(ceil_div(n, piece), 0,
                     [&](i64 i, char *) { f(i * piece, std::min(n, (i + 1) * piece)); });
}

// total (size) <- the sum of `shares` arrays, one behind the other, in this order
template <class T> void add_shares(i64 shares, i64 size, const T *parts, T *total) {
  parallel_ranges(size, [&](i64 begin, i64 end) {
    for (i64 i = begin; i < end; ++i) {
      T sum = 0;
      for (i64 share = 0; share < shares; ++share) sum += parts[share * size + i];
      total[i] = sum;
    }
  });
}

void bind_conv(nb::module_ &m);
void bind_linear(nb::module_ &m);
void bind_products(nb::module_ &m);
void bind_pool(nb::module_ &m);
void bind_lrn(nb::module_ &m);
void bind_channel(nb::module_ &m);
void bind_elementwise(nb::module_ &m);
void bind_activations(nb::module_ &m);
void bind_dropout(nb::module_ &m);
