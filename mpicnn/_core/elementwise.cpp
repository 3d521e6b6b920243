// Operations that treat every element by itself, and the loss, which treats every row by itself.

#include "common.h"

#include <cmath>

template <class T> void softmax_xent(i64 classes, const T *logits, i64 label, T *loss, T *d) {
  const T top = *std::max_element(logits, logits + classes);
  T total = 0;
  for (i64 j = 0; j < classes; ++j) total += d[j] = std::exp(logits[j] - top);
  *loss = std::log(total) - (logits[label] - top);
  for (i64 j = 0; j < classes; ++j) d[j] /= total;
  d[label] -= 1;
}

template <class T> static void bind(nb::module_ &m) {
  m.def("mul", [](In<T> x, In<T> mask, Out<T> y) {
    const T *a = x.data(), *b = mask.data();
    T *to = y.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(x.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) to[i] = a[i] * b[i];
    });
  });
  m.def("sgd", [](Out<T> w, Out<T> v, In<T> g, T rate, T momentum, T decay) {
    T *weight = w.data(), *speed = v.data();
    const T *gradient = g.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(w.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) {
        speed[i] = momentum * speed[i] - rate * (gradient[i] + decay * weight[i]);
        weight[i] += speed[i];
      }
    });
  });
  m.def("descend", [](Out<T> w, In<T> g, T rate, T decay) {
    T *weight = w.data();
    const T *gradient = g.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(w.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) weight[i] -= rate * (gradient[i] + decay * weight[i]);
    });
  });
  m.def("nesterov", [](Out<T> w, Out<T> v, In<T> g, T rate, T momentum, T decay) {
    T *weight = w.data(), *speed = v.data();
    const T *gradient = g.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(w.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) {
        const T change = rate * (gradient[i] + decay * weight[i]);
        speed[i] = momentum * speed[i] - change;
        weight[i] += momentum * speed[i] - change;
      }
    });
  });
  // Weights are 1 - beta, as float32 does not hold it near 1; `sum1` and `root2` undo that the
  // moments began at 0.
  m.def("adam", [](Out<T> m1, Out<T> m2, Out<T> g, T weight1, T weight2, T eps, T sum1, T root2) {
    T *first = m1.data(), *second = m2.data(), *gradient = g.data();
    nb::gil_scoped_release unlocked;
    parallel_ranges(i64(g.size()), [=](i64 begin, i64 end) {
      for (i64 i = begin; i < end; ++i) {
        const T d = gradient[i];
        first[i] += weight1 * (d - first[i]);
        second[i] += weight2 * (d * d - second[i]);
        gradient[i] = first[i] / (sum1 * (std::sqrt(second[i]) / root2 + eps));
      }
    });
  });
  m.def("softmax_xent", [](In<T> logits, In<i64> labels, Out<T> losses, Out<T> dlogits) {
    const i64 n = logits.shape(0), classes = logits.shape(1);
    nb::gil_scoped_release unlocked;
    constexpr i64 rows = 16;
    parallel_for<char>(ceil_div(n, rows), 0, [&](i64 task, char *) {
      for (i64 i = task * rows; i < std::min(n, (task + 1) * rows); ++i)
        softmax_xent(classes, logits.data() + i * classes, labels.data()[i], losses.data() + i,
                     dlogits.data() + i * classes);
    });
  });
}

void bind_elementwise(nb::module_ &m) {
  bind<float>(m);
  bind<double>(m);
}
