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

// How im2col_method multiplies: here by BLAS, which packs its operands by itself.
template <class T> struct Blas {
  using Array = T;   // elements of arguments and results
  using Column = T;  // elements of columns

  // The left operand of some products, op(at) (m, k).
  struct Left {
    Op op;
    i64 m, k;
    const T *at;
    i64 ld;
  };

  // Elements of room that `left` and `multiply` need.
  static i64 left_size(i64, i64) { return 0; }
  static i64 right_size(i64, i64) { return 0; }

  static Left left(Op op, i64 m, i64 k, const T *a, i64 lda, T *) { return {op, m, k, a, lda}; }

  // c (m, n) = or += a (m, k) op_b(b) (k, n)
  static void multiply(const Left &a, Op op_b, i64 n, const T *b, i64 ldb, bool add, T *c, i64 ldc,
                       T *) {
    gemm<T>(a.op, op_b, a.m, n, a.k, a.at, a.ld, b, ldb, T(add), c, ldc);
  }

  // A left operand that several threads multiply with.
  class Shared {
   public:
    Shared(Op op, i64 m, i64 k, const T *a, i64 lda) : left_{op, m, k, a, lda} {}
    const Left &left() const { return left_; }

   private:
    Left left_;
  };

  // What an element counts as in a product.
  static T operand(T x) { return x; }
};
