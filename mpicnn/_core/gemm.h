// Matrix products, row-major, through CBLAS functions whose addresses are handed in at import.
//
// No link to a BLAS: the library (its own copy, kept at one thread) is opened from Python, so that
// the build needs no BLAS headers and any library with a CBLAS interface of 32-bit integers serves.
#pragma once

#include "common.h"

template <class T>
using Gemm = void (*)(int order, int trans_a, int trans_b, int m, int n, int k, T alpha, const T *a,
                      int lda, const T *b, int ldb, T beta, T *c, int ldc);

template <class T> inline std::atomic<Gemm<T>> gemm_address{nullptr};

inline std::atomic<void (*)(int)> set_blas_threads{nullptr};

// To be called before the threads that multiply are started: each multiplies by itself, whatever
// was asked of every BLAS in the process since the last time.
inline void serial_blas() { set_blas_threads.load(std::memory_order_relaxed)(1); }

enum class Op : int { keep = 111, transpose = 112 };  // CblasNoTrans, CblasTrans

// c (m, n) = op(a) (m, k) op(b) (k, n) + beta c
template <class T>
void gemm(Op op_a, Op op_b, i64 m, i64 n, i64 k, const T *a, i64 lda, const T *b, i64 ldb, T beta,
          T *c, i64 ldc) {
  constexpr int row_major = 101;
  gemm_address<T>.load(std::memory_order_relaxed)(row_major, int(op_a), int(op_b), int(m), int(n),
                                                  int(k), T(1), a, int(lda), b, int(ldb), beta, c,
                                                  int(ldc));
}
