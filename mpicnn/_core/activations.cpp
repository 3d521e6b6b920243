// The functions of mpicnn/ops/activations.py and their derivatives.

#include "finish.h"
#include "functions.h"

// y[i] = f(x[i], slope)
template <class T, class F> static void function(nb::module_ &m, const char *name, F f) {
  m.def(name, [f](In<T> x, T slope, Out<T> y) {
    const T *from = x.data();
    T *to = y.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(x.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) to[i] = f(from[i], slope);
    });
  });
}

// dx[i] = f(dy[i], the x or y that it reads, slope)
template <class T, class F> static void derivative(nb::module_ &m, const char *name, F f) {
  m.def(name, [f](In<T> dy, In<T> saved, T slope, Out<T> dx) {
    const T *gradient = dy.data(), *value = saved.data();
    T *to = dx.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(dy.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) to[i] = f(gradient[i], value[i], slope);
    });
  });
}

template <class T> static T up_to_6(T x) {
  const T value = raised(x, T(0));
  return value > 6 ? T(6) : value;
}

template <class T> static void bind(nb::module_ &m) {
  function<T>(m, "relu", [](T x, T) { return raised(x, T(0)); });
  derivative<T>(m, "relu_dx", [](T dy, T y, T) { return y > 0 ? dy : T(0); });
  function<T>(m, "relu6", [](T x, T) { return up_to_6(x); });
  derivative<T>(m, "relu6_dx", [](T dy, T y, T) { return (y > 0) & (y < 6) ? dy : T(0); });
  function<T>(m, "leakyrelu", [](T x, T slope) { return x > 0 ? x : x * slope; });
  derivative<T>(m, "leakyrelu_dx", [](T dy, T y, T slope) { return y > 0 ? dy : dy * slope; });
  function<T>(m, "hardswish", [](T x, T) { return x * up_to_6(x + 3) / 6; });
  derivative<T>(m, "hardswish_dx", [](T dy, T x, T) {
    const T between = dy * (x / 3 + T(0.5));
    return x <= -3 ? T(0) : x >= 3 ? dy : between;
  });
  function<T>(m, "sigmoid", [](T x, T) { return sigmoid(x); });
  derivative<T>(m, "sigmoid_dx", [](T dy, T y, T) { return dy * y * (1 - y); });
  function<T>(m, "tanh", [](T x, T) { return hyperbolic_tangent(x); });
  derivative<T>(m, "tanh_dx", [](T dy, T y, T) { return dy * (1 - y * y); });
  function<T>(m, "silu", [](T x, T) { return x / (1 + exponential(-x)); });
  derivative<T>(m, "silu_dx", [](T dy, T x, T) {
    const T s = sigmoid(x);
    return dy * s * (1 + x * (1 - s));
  });
  function<T>(m, "gelu", [](T x, T) { return x * below(x, bell(x)); });
  derivative<T>(m, "gelu_dx", [](T dy, T x, T) {
    const T density = bell(x);
    return dy * (below(x, density) + x * density * T(0.3989422804014327));
  });
}

void bind_activations(nb::module_ &m) {
  bind<float>(m);
  bind<double>(m);
}
