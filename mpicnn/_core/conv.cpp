// Convolution: which method serves which shape, and the bindings.

#include "bf16_product.h"
#include "conv_depthwise.h"
#include "conv_im2col.h"
#include "conv_lines.h"
#include "conv_winograd.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

// One way to convolve. `fits` and `cost` may look at the shape alone: the choice must be the same in
// every call for the shape, on every run and rank.
template <class T> struct ConvMethod {
  const char *name;
  bool transforms;  // errors are ten times those of the others
  bool (*fits)(const ConvShape &);
  double (*cost)(const ConvShape &, Pass);
  void (*forward)(const ConvShape &, const T *x, const T *w, const Finish<T> &, T *y);
  void (*input_gradient)(const ConvShape &, const T *dy, const T *w, T *dx);
  void (*weight_gradient)(const ConvShape &, const T *x, const T *dy, T *dw);
};

template <int m, int r> static constexpr ConvMethod<float> winograd_method(const char *name) {
  using W = WinogradMethod<m, r>;
  return {name, true, W::fits, W::cost, W::forward, W::input_gradient, W::weight_gradient};
}

template <class P, class T = typename P::Array>
static constexpr ConvMethod<T> depthwise_by(const char *name) {
  return {name, false, depthwise_method::fits, depthwise_cost, depthwise_method::forward<P>,
          depthwise_method::input_gradient<P>, depthwise_method::weight_gradient<P>};
}

template <class P, class T = typename P::Array>
static constexpr ConvMethod<T> columns_by(const char *name) {
  return {name, false, [](const ConvShape &) { return true; }, column_cost,
          im2col_method::forward<P>, im2col_method::input_gradient<P>,
          im2col_method::weight_gradient<P>};
}

// The gradient by x is that of columns.
static constexpr ConvMethod<float> lines{
    "lines", false, lines_method::fits, lines_method::cost, lines_method::forward,
    im2col_method::input_gradient<Blas<float>>, lines_method::weight_gradient};

template <class T> using Methods = std::vector<ConvMethod<T>>;

// What there is to choose from; the last one fits everything. No transforms where errors matter
// (float64) nor of operands of 8 bits (bf16), which they would cancel.
template <class T> static const Methods<T> &methods() {
  static const Methods<double> doubles{
      depthwise_by<Blas<double>>("depthwise"), columns_by<Blas<double>>("im2col")};
  static const Methods<float> floats{
      winograd_method<4, 5>("winograd 4x4,5x5"), winograd_method<6, 3>("winograd 6x6,3x3"),
      winograd_method<4, 3>("winograd 4x4,3x3"), depthwise_by<Blas<float>>("depthwise"), lines,
      columns_by<Blas<float>>("im2col")};
  static const Methods<float> rounded{
      depthwise_by<bf16::Product>("depthwise bf16"), columns_by<bf16::Product>("im2col bf16")};
  if constexpr (std::is_same_v<T, double>) return doubles;
  else return bf16::selected ? rounded : floats;
}

static std::atomic<bool> transforms_allowed{true};

// The method by this name, or, for an empty one, the cheapest that fits.
template <class T>
static const ConvMethod<T> &method_for(const ConvShape &s, Pass pass, const std::string &name) {
  const ConvMethod<T> *best = nullptr;
  for (const ConvMethod<T> &method : methods<T>()) {
    if (!method.fits(s) || (!name.empty() && name != method.name)) continue;
    if (name.empty() && method.transforms && !transforms_allowed) continue;
    if (!best || method.cost(s, pass) < best->cost(s, pass)) best = &method;
  }
  if (!best) throw std::invalid_argument("method: none is called " + name + " and fits the shape");
  return *best;
}

template <class T> static void bind(nb::module_ &m) {
  m.def("conv2d", [](const ConvShape &s, In<T> x, In<T> w, std::optional<In<T>> b, bool relu,
                     Out<T> y, const std::string &name) {
    const ConvMethod<T> &method = method_for<T>(s, Pass::forward, name);
    nb::gil_scoped_release unlocked;
    serial_blas();
    method.forward(s, x.data(), w.data(), {b ? b->data() : nullptr, relu}, y.data());
  }, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg("method") = "");
  m.def("conv2d_dx", [](const ConvShape &s, In<T> dy, In<T> w, Out<T> dx, const std::string &name) {
    const ConvMethod<T> &method = method_for<T>(s, Pass::input_gradient, name);
    nb::gil_scoped_release unlocked;
    serial_blas();
    method.input_gradient(s, dy.data(), w.data(), dx.data());
  }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg("method") = "");
  m.def("conv2d_dw", [](const ConvShape &s, In<T> x, In<T> dy, Out<T> dw, const std::string &name) {
    const ConvMethod<T> &method = method_for<T>(s, Pass::weight_gradient, name);
    nb::gil_scoped_release unlocked;
    serial_blas();
    method.weight_gradient(s, x.data(), dy.data(), dw.data());
  }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg("method") = "");
}

// The names of the methods for the three passes.
template <class T> static std::array<std::string, 3> names(const ConvShape &s) {
  return {method_for<T>(s, Pass::forward, "").name, method_for<T>(s, Pass::input_gradient, "").name,
          method_for<T>(s, Pass::weight_gradient, "").name};
}

// A, G and B^T of F(m, r), row by row, for the tests.
template <int m, int r> static nb::list matrices() {
  using F = Winograd<m, r>;
  const auto rows = [](const auto &matrix) {
    nb::list all;
    for (const auto &row : matrix.at) {
      nb::list one;
      for (double value : row) one.append(value);
      all.append(one);
    }
    return all;
  };
  nb::list all;
  all.append(rows(F::A));
  all.append(rows(F::G));
  all.append(rows(F::B));
  return all;
}

using Pair = std::pair<i64, i64>;

void bind_conv(nb::module_ &m) {
  nb::class_<ConvShape>(m, "ConvShape")
      .def("__init__", [](ConvShape *s, std::array<i64, 4> x, std::array<i64, 4> w, Pair stride,
                          Pair padding, Pair dilation, i64 groups) {
        new (s) ConvShape{x[0], x[1], x[2], x[3], w[0], groups, w[2], w[3], stride.first,
                          stride.second, padding.first, padding.second, dilation.first,
                          dilation.second};
      });
  m.def("allow_transforms", [](bool allowed) { transforms_allowed = allowed; });
  m.def("conv_methods", [](const ConvShape &s, bool float32) {
    return float32 ? names<float>(s) : names<double>(s);
  });
  m.def("winograd_matrices", [] {
    nb::dict all;
    all["winograd 4x4,5x5"] = matrices<4, 5>();
    all["winograd 6x6,3x3"] = matrices<6, 3>();
    all["winograd 4x4,3x3"] = matrices<4, 3>();
    return all;
  });
  bind<float>(m);
  bind<double>(m);
}
