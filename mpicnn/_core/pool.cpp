// Pooling of planes (height, width): every channel of every example is one plane.

#include "cells.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <stdexcept>
#include <vector>

using Pair = std::pair<i64, i64>;
using Shape4 = std::array<i64, 4>;

struct PoolShape {
  i64 planes, h, w, oh, ow, kh, kw, sh, sw, ph, pw;

  PoolShape(Shape4 x, Pair out, Pair kernel, Pair stride, Pair padding)
      : planes(x[0] * x[1]), h(x[2]), w(x[3]), oh(out.first), ow(out.second), kh(kernel.first),
        kw(kernel.second), sh(stride.first), sw(stride.second), ph(padding.first),
        pw(padding.second) {}

  // Calls f(place, tap) for the taps of window (oy, ox) inside the input, in the window's order.
  template <class F> void each_tap(i64 oy, i64 ox, F &&f) const {
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    const i64 begin = std::max<i64>(0, -left), end = std::min(kw, w - left);
    for (i64 ki = std::max<i64>(0, -top); ki < std::min(kh, h - top); ++ki)
      for (i64 kj = begin; kj < end; ++kj) f((top + ki) * w + left + kj, ki * kw + kj);
  }

  // Place and tap of the first of them.
  Pair first_tap(i64 oy, i64 ox) const {
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    const i64 ki = std::max<i64>(0, -top), kj = std::max<i64>(0, -left);
    return {(top + ki) * w + left + kj, ki * kw + kj};
  }

  // The number of values that the mean of window (oy, ox) counts, as PyTorch counts them.
  i64 divisor(i64 oy, i64 ox, bool padded) const {
    const i64 mh = padded ? ph : 0, mw = padded ? pw : 0;
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    return (std::min(top + kh, h + mh) - std::max(top, -mh)) *
           (std::min(left + kw, w + mw) - std::max(left, -mw));
  }
};

// Calls f(plane, count, cells) for the planes, `lanes` of them side by side: plane … plane + count - 1,
// with room for `size` cells. Whatever the window, all lanes do the same.
template <class T, class F> void each_group(const PoolShape &s, i64 size, F &&f) {
  parallel_for<T>(ceil_div(s.planes, lanes), size * lanes, [&](i64 task, T *cells) {
    f(task * lanes, std::min(lanes, s.planes - task * lanes), cells);
  });
}

template <class T, class Index>
void maxpool(const PoolShape &s, const T *x, T *y, Index *argmax) {
  const i64 size = s.h * s.w, outputs = s.oh * s.ow;
  // Behind the cells of x and y lie those of argmax, which are no larger.
  each_group<T>(s, size + 2 * outputs, [&](i64 plane, i64 count, T *cells) {
    T *largest = cells + size * lanes;
    Index *places = reinterpret_cast<Index *>(largest + outputs * lanes);
    to_cells(count, size, x + plane * size, cells);
    for (i64 oy = 0, at = 0; oy < s.oh; ++oy)
      for (i64 ox = 0; ox < s.ow; ++ox, at += lanes) {
        // The first value counts even if it is -inf; the first NaN beats everything.
        const auto [from, tap] = s.first_tap(oy, ox);
        Cell<T> best = cell(cells + from * lanes);
        Cell<Place<T>> place = Cell<Place<T>>{} + Place<T>(tap);
        s.each_tap(oy, ox, [&](i64 from, i64 tap) {
          const Cell<T> &value = cell(cells + from * lanes);
          const auto wins = ~(value <= best) & (best == best);
          best = wins ? value : best;
          place = wins ? Cell<Place<T>>{} + Place<T>(tap) : place;
        });
        cell(largest + at) = best;
        for (i64 j = 0; j < lanes; ++j) places[at + j] = Index(place[j]);
      }
    to_planes(count, outputs, largest, y + plane * outputs);
    to_planes(count, outputs, places, argmax + plane * outputs);
  });
}

template <class T, class Index>
void maxpool_dx(const PoolShape &s, const T *dy, const Index *argmax, T *dx) {
  std::vector<i64> offsets;  // divisions are slow
  for (i64 i = 0; i < s.kh; ++i)
    for (i64 j = 0; j < s.kw; ++j) offsets.push_back(i * s.w + j);
  std::atomic<bool> outside{false};
  const auto add = [&](i64 p) {
    const Index *places = argmax + p * s.oh * s.ow;
    T *plane = dx + p * s.h * s.w;
    std::fill_n(plane, s.h * s.w, T(0));
    Index largest = 0;
    for (i64 i = 0; i < s.oh * s.ow; ++i) largest = std::max(largest, places[i]);
    if (largest >= offsets.size()) return false;
    const T *gradient = dy + p * s.oh * s.ow;
    for (i64 oy = 0; oy < s.oh; ++oy) {
      const i64 top = oy * s.sh - s.ph;
      const bool overhangs = top < 0 || top + s.kh > s.h;
      for (i64 ox = 0; ox < s.ow; ++ox, ++places, ++gradient) {
        const i64 left = ox * s.sw - s.pw;
        if (overhangs || left < 0 || left + s.kw > s.w) {
          const i64 line = top + *places / s.kw, column = left + *places % s.kw;
          if (line < 0 || column < 0 || line >= s.h || column >= s.w) return false;
        }
        plane[top * s.w + left + offsets[*places]] += *gradient;
      }
    }
    return true;
  };
  // Planes are small: several to a task.
  const i64 group = std::max<i64>(1, (1 << 14) / std::max<i64>(1, s.h * s.w));
  parallel_for<char>(ceil_div(s.planes, group), 0, [&](i64 task, char *) {
    for (i64 p = task * group; p < std::min(s.planes, (task + 1) * group); ++p)
      if (!add(p)) outside = true;
  });
  if (outside) throw std::invalid_argument("argmax: a place lies outside its window or the input");
}

template <class T> void avgpool(const PoolShape &s, bool padded, const T *x, T *y) {
  const i64 size = s.h * s.w, outputs = s.oh * s.ow;
  each_group<T>(s, size + outputs, [&](i64 plane, i64 count, T *cells) {
    T *mean = cells + size * lanes;
    to_cells(count, size, x + plane * size, cells);
    for (i64 oy = 0, at = 0; oy < s.oh; ++oy)
      for (i64 ox = 0; ox < s.ow; ++ox, at += lanes) {
        Cell<T> sum = {};
        s.each_tap(oy, ox, [&](i64 from, i64) {
          sum += cell(cells + from * lanes);
        });
        cell(mean + at) = sum / T(s.divisor(oy, ox, padded));
      }
    to_planes(count, outputs, mean, y + plane * outputs);
  });
}

template <class T> void avgpool_dx(const PoolShape &s, bool padded, const T *dy, T *dx) {
  const i64 size = s.h * s.w, outputs = s.oh * s.ow;
  each_group<T>(s, size + outputs, [&](i64 plane, i64 count, T *cells) {
    T *gradient = cells + size * lanes;
    to_cells(count, outputs, dy + plane * outputs, gradient);
    std::fill_n(cells, size * lanes, T(0));
    for (i64 oy = 0, at = 0; oy < s.oh; ++oy)
      for (i64 ox = 0; ox < s.ow; ++ox, at += lanes) {
        const Cell<T> share =
            cell(gradient + at) / T(s.divisor(oy, ox, padded));
        s.each_tap(oy, ox, [&](i64 to, i64) {
          cell(cells + to * lanes) += share;
        });
      }
    to_planes(count, size, cells, dx + plane * size);
  });
}

template <class T, class Index> static void bind_max(nb::module_ &m) {
  m.def("maxpool", [](const PoolShape &s, In<T> x, Out<T> y, Out<Index> argmax) {
    nb::gil_scoped_release unlocked;
    maxpool(s, x.data(), y.data(), argmax.data());
  });
  m.def("maxpool_dx", [](const PoolShape &s, In<T> dy, In<Index> argmax, Out<T> dx) {
    nb::gil_scoped_release unlocked;
    maxpool_dx(s, dy.data(), argmax.data(), dx.data());
  });
}

template <class T> static void bind(nb::module_ &m) {
  bind_max<T, std::uint8_t>(m);
  bind_max<T, std::uint16_t>(m);
  m.def("avgpool", [](const PoolShape &s, bool padded, In<T> x, Out<T> y) {
    nb::gil_scoped_release unlocked;
    avgpool(s, padded, x.data(), y.data());
  });
  m.def("avgpool_dx", [](const PoolShape &s, bool padded, In<T> dy, Out<T> dx) {
    nb::gil_scoped_release unlocked;
    avgpool_dx(s, padded, dy.data(), dx.data());
  });
}

void bind_pool(nb::module_ &m) {
  nb::class_<PoolShape>(m, "PoolShape").def(nb::init<Shape4, Pair, Pair, Pair, Pair>());
  bind<float>(m);
  bind<double>(m);
}
