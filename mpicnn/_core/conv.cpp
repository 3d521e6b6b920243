// Convolution: which method serves which shape, and the bindings.

#include "conv_im2col.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

// One way to convolve. `fits` may look at the shape alone: the choice must be the same in every
// call for the shape, on every run.
template <class T> struct ConvMethod {
  bool (*fits)(const ConvShape &);
  void (*forward)(const ConvShape &, const T *x, const T *w, const T *b, T *y);
  void (*input_gradient)(const ConvShape &, const T *dy, const T *w, T *dx);
  void (*weight_gradient)(const ConvShape &, const T *x, const T *dy, T *dw);
};

// The first method that fits is taken; the last one fits everything.
template <class T>
static const ConvMethod<T> methods[] = {
    {[](const ConvShape &) { return true; }, im2col_method::forward<T>,
     im2col_method::input_gradient<T>, im2col_method::weight_gradient<T>},
};

// The method for a shape, ready to be called.
template <class T> static const ConvMethod<T> &method_for(const ConvShape &s) {
  serial_blas();
  const ConvMethod<T> *method = methods<T>;
  while (!method->fits(s)) ++method;
  return *method;
}

template <class T> static void bind(nb::module_ &m) {
  m.def("conv2d", [](const ConvShape &s, In<T> x, In<T> w, std::optional<In<T>> b, Out<T> y) {
    nb::gil_scoped_release unlocked;
    method_for<T>(s).forward(s, x.data(), w.data(), b ? b->data() : nullptr, y.data());
  }, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  m.def("conv2d_dx", [](const ConvShape &s, In<T> dy, In<T> w, Out<T> dx) {
    nb::gil_scoped_release unlocked;
    method_for<T>(s).input_gradient(s, dy.data(), w.data(), dx.data());
  });
  m.def("conv2d_dw", [](const ConvShape &s, In<T> x, In<T> dy, Out<T> dw) {
    nb::gil_scoped_release unlocked;
    method_for<T>(s).weight_gradient(s, x.data(), dy.data(), dw.data());
  });
}

using Pair = std::pair<i64, i64>;

void bind_conv(nb::module_ &m) {
  nb::class_<ConvShape>(m, "ConvShape")
      .def("__init__", [](ConvShape *s, std::array<i64, 4> x, std::array<i64, 4> w, Pair stride,
                          Pair padding, Pair dilation, i64 groups) {
        new (s) ConvShape{x[0], x[1], x[2], x[3], w[0], groups, w[2], w[3], stride.first,
                          stride.second, padding.first, padding.second, dilation.first,
                          dilation.second};
      })
      .def_prop_ro("y_shape", [](const ConvShape &s) {
        return std::array<i64, 4>{s.n, s.o, s.oh(), s.ow()};
      });
  bind<float>(m);
  bind<double>(m);
}
