// Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3).

#include "common.h"

#include <cmath>

// Pixels worked on at a time: a row of one channel, so that a window's rows stay in the first cache.
constexpr i64 width = 256;

// y = a * scale**-beta. Square roots vectorise and powers do not: the papers' beta is worth a branch.
template <class T> void scaled(i64 n, const T *a, const T *scale, T beta, T *y) {
  if (beta == T(0.75))
    for (i64 i = 0; i < n; ++i) {
      const T root = std::sqrt(scale[i]);
      y[i] = a[i] / (root * std::sqrt(root));
    }
  else
    for (i64 i = 0; i < n; ++i) y[i] = a[i] * std::pow(scale[i], -beta);
}

template <class T>
void lrn(i64 n, i64 c, i64 pixels, i64 size, T alpha, T beta, T k, const T *x, T *y, T *scale) {
  const i64 cuts = ceil_div(pixels, width);
  parallel_for<T>(n * cuts, 0, [&](i64 task, T *) {
    const i64 at = task / cuts * c * pixels + task % cuts * width;
    const i64 count = std::min(width, pixels - task % cuts * width);
    for (i64 i = 0; i < c; ++i) {
      T sum[width];
      std::fill_n(sum, count, T(0));
      const i64 end = std::min(c, i + (size - 1) / 2 + 1);
      for (i64 j = std::max<i64>(0, i - size / 2); j < end; ++j) {
        const T *row = x + at + j * pixels;
        for (i64 p = 0; p < count; ++p) sum[p] += row[p] * row[p];
      }
      const i64 here = at + i * pixels;
      for (i64 p = 0; p < count; ++p) sum[p] = k + alpha / T(size) * sum[p];
      scaled(count, x + here, sum, beta, y + here);
      std::copy_n(sum, count, scale + here);
    }
  });
}

// dx_i = dy_i scale_i**-beta - 2 alpha beta / size x_i (sum of dy_j y_j / scale_j over the windows j
// that hold i: the mirrored window)
template <class T>
void lrn_dx(i64 n, i64 c, i64 pixels, i64 size, T alpha, T beta, const T *dy, const T *x, const T *y,
            const T *scale, T *dx) {
  const i64 cuts = ceil_div(pixels, width), before = (size - 1) / 2, after = size / 2;
  // The ratios of the channels in a window, in a ring: each is made once, just before it is needed.
  const i64 ring = std::min(size, c);
  parallel_for<T>(n * cuts, ring * width, [&](i64 task, T *ratios) {
    const i64 at = task / cuts * c * pixels + task % cuts * width;
    const i64 count = std::min(width, pixels - task % cuts * width);
    const T factor = -2 * alpha * beta / T(size);
    i64 made = 0;
    for (i64 i = 0; i < c; ++i) {
      const i64 end = std::min(c, i + after + 1);
      for (; made < end; ++made) {
        const i64 there = at + made * pixels;
        T *ratio = ratios + made % ring * width;
        for (i64 p = 0; p < count; ++p) ratio[p] = dy[there + p] * y[there + p] / scale[there + p];
      }
      T sum[width];
      std::fill_n(sum, count, T(0));
      for (i64 j = std::max<i64>(0, i - before); j < end; ++j) {
        const T *ratio = ratios + j % ring * width;
        for (i64 p = 0; p < count; ++p) sum[p] += ratio[p];
      }
      const i64 here = at + i * pixels;
      scaled(count, dy + here, scale + here, beta, dx + here);
      for (i64 p = 0; p < count; ++p) dx[here + p] += factor * x[here + p] * sum[p];
    }
  });
}

template <class T> static void bind(nb::module_ &m) {
  m.def("lrn", [](In<T> x, i64 size, T alpha, T beta, T k, Out<T> y, Out<T> scale) {
    nb::gil_scoped_release unlocked;
    lrn<T>(x.shape(0), x.shape(1), x.shape(2), size, alpha, beta, k, x.data(), y.data(),
           scale.data());
  });
  m.def("lrn_dx", [](In<T> dy, In<T> x, In<T> y, In<T> scale, i64 size, T alpha, T beta, Out<T> dx) {
    nb::gil_scoped_release unlocked;
    lrn_dx<T>(x.shape(0), x.shape(1), x.shape(2), size, alpha, beta, dy.data(), x.data(), y.data(),
              scale.data(), dx.data());
  });
}

void bind_lrn(nb::module_ &m) {
  bind<float>(m);
  bind<double>(m);
}
