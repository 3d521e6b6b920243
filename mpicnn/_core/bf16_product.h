// Products of operands rounded to bf16, with sums and results in float32.
#pragma once

#include "bf16_kernels.h"
#include "gemm.h"

namespace bf16 {

// What products of float32 arrays are made with, or null where they are made in float32.
inline std::atomic<const Kernel *> selected{nullptr};

// c (m, n), rows `pitch` apart, = or += a (m, k) b (k, n), both packed
void product(i64 m, i64 n, i64 k, const Pair *a, const Pair *b, float *c, i64 pitch, bool add);

// The functions of Blas for these products.
struct Product {
  using Array = float;
  using Column = Bf16;

  struct Left {
    i64 m, k;
    const Pair *at;
  };

  static i64 left_size(i64 m, i64 k) { return packed_size(m, k); }
  static Left left(Op op, i64 m, i64 k, const float *a, i64 lda, float *room) {
    Pair *to = aligned(room);
    pack(m, k, Operand<float>{a, lda, op == Op::keep}, true, to);
    return {m, k, to};
  }

  static i64 right_size(i64 n, i64 k) { return packed_size(n, k); }
  template <class S>
  static void multiply(const Left &a, Op op_b, i64 n, const S *b, i64 ldb, bool add, float *c,
                       i64 ldc, float *room) {
    Pair *right = aligned(room);
    pack(n, a.k, Operand<S>{b, ldb, op_b == Op::transpose}, false, right);
    product(a.m, n, a.k, a.at, right, c, ldc, add);
  }

  // A left operand that several threads multiply with, packed by all of them.
  class Shared {
   public:
    Shared(Op op, i64 m, i64 k, const float *a, i64 lda)
        : room_(new float[left_size(m, k)]), left_{m, k, aligned(room_.get())} {
      const Operand<float> from{a, lda, op == Op::keep};
      constexpr i64 rows = 4 * side;
      parallel_for<char>(ceil_div(m, rows), 0, [&](i64 task, char *) {
        const i64 row = task * rows;
        Pair *to = aligned(room_.get()) + row / side * ceil_div(k, terms_per_tile) * tile;
        pack(std::min(rows, m - row), k, from.from(row, 0), true, to);
      });
    }
    const Left &left() const { return left_; }

   private:
    std::unique_ptr<float[]> room_;
    Left left_;
  };

  static float operand(float x) { return to_float(rounded_bits(x)); }
};

}  // namespace bf16
