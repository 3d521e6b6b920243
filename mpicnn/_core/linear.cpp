// Fully connected layers: matrix products cut into tasks, and the address of the product itself.

#include "bf16_product.h"
#include "finish.h"

#include <nanobind/stl/optional.h>

// c (rows, columns), lines n apart, <- itself, finished
template <class T> static void apply(const Finish<T> &finish, i64 rows, i64 columns, T *c, i64 n) {
  if (!finish.any()) return;
  const T least = finish.least();
  for (i64 i = 0; i < rows; ++i, c += n)
    for (i64 j = 0; j < columns; ++j) c[j] = raised(c[j] + finish.bias(j), least);
}

// As below, from operands rounded to bf16; some columns of c to a task, which packs its part of b.
static void bf16_product(Op op_a, Op op_b, i64 m, i64 n, i64 k, const float *a, i64 lda,
                         const float *b, i64 ldb, float *c, bool add, const Finish<float> &finish) {
  using bf16::Product;
  constexpr i64 side = 128;
  const Product::Shared shared(op_a, m, k, a, lda);
  parallel_for<float>(ceil_div(n, side), Product::right_size(side, k), [&](i64 task, float *room) {
    const i64 j = task * side, columns = std::min(side, n - j);
    Product::multiply(shared.left(), op_b, columns, b + j * (op_b == Op::keep ? 1 : ldb), ldb, add,
                      c + j, n, room);
    apply(finish.from(j), m, columns, c + j, n);
  });
}

// c (m, n) = op(a) (m, k) op(b) (k, n), plus c if it is to be added to, finished; a block of c to a
// task. Cuts follow the shape alone, and the contraction is never cut: the bits do not depend on the
// number of threads.
template <class T>
static void product(Op op_a, Op op_b, i64 m, i64 n, i64 k, const T *a, i64 lda, const T *b, i64 ldb,
                    T *c, bool add = false, const Finish<T> &finish = {}) {
  if constexpr (std::is_same_v<T, float>)
    if (bf16::selected) return bf16_product(op_a, op_b, m, n, k, a, lda, b, ldb, c, add, finish);
  serial_blas();
  constexpr i64 side = 256;
  const i64 across = ceil_div(n, side);
  parallel_for<char>(ceil_div(m, side) * across, 0, [&](i64 task, char *) {
    const i64 i = task / across * side, j = task % across * side;
    const i64 rows = std::min(side, m - i), columns = std::min(side, n - j);
    T *block = c + i * n + j;
    gemm<T>(op_a, op_b, rows, columns, k, a + i * (op_a == Op::keep ? lda : 1), lda,
            b + j * (op_b == Op::keep ? 1 : ldb), ldb, T(add), block, n);
    apply(finish.from(j), rows, columns, block, n);
  });
}

template <class T> static void bind(nb::module_ &m) {
  m.def("linear", [](In<T> x, In<T> w, std::optional<In<T>> b, bool relu, Out<T> y) {
    const i64 n = x.shape(0), c = x.shape(1), o = w.shape(0);
    nb::gil_scoped_release unlocked;
    product<T>(Op::keep, Op::transpose, n, o, c, x.data(), c, w.data(), c, y.data(), false,
               {b ? b->data() : nullptr, relu});
  }, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg());
  m.def("linear_dx", [](In<T> dy, In<T> w, Out<T> dx) {
    const i64 n = dy.shape(0), o = dy.shape(1), c = w.shape(1);
    nb::gil_scoped_release unlocked;
    product<T>(Op::keep, Op::keep, n, c, o, dy.data(), o, w.data(), c, dx.data());
  });
  m.def("linear_dw", [](In<T> x, In<T> dy, Out<T> dw, bool add) {
    const i64 n = x.shape(0), c = x.shape(1), o = dy.shape(1);
    nb::gil_scoped_release unlocked;
    product<T>(Op::transpose, Op::keep, o, c, n, dy.data(), o, x.data(), c, dw.data(), add);
  });
}

void bind_linear(nb::module_ &m) {
  m.def("use_blas", [](std::uintptr_t sgemm, std::uintptr_t dgemm, std::uintptr_t set_threads) {
    gemm_address<float> = reinterpret_cast<Gemm<float>>(sgemm);
    gemm_address<double> = reinterpret_cast<Gemm<double>>(dgemm);
    set_blas_threads = reinterpret_cast<void (*)(int)>(set_threads);
  });
  bind<float>(m);
  bind<double>(m);
}
