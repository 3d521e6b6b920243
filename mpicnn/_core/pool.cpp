// Pooling of planes (height, width): every channel of every example is one plane.

#include "common.h"

#include <limits>
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

  // Calls f(line, tap, offset, begin, end) for the taps ki, kj of output line oy that lie inside the
  // input, in the window's order: the input line, and the outputs whose tap is at ox * sw + offset.
  template <class F> void each_tap(i64 oy, F &&f) const {
    for (i64 ki = 0; ki < kh; ++ki) {
      const i64 line = oy * sh - ph + ki;
      if (line < 0 || line >= h) continue;
      for (i64 kj = 0; kj < kw; ++kj) {
        const i64 offset = kj - pw;
        const i64 begin = offset < 0 ? ceil_div(-offset, sw) : 0;
        const i64 end = offset < w ? std::min(ow, (w - 1 - offset) / sw + 1) : 0;
        f(line, ki * kw + kj, offset, begin, end);
      }
    }
  }

  // The number of values that the mean of window (oy, ox) counts, as PyTorch counts them.
  i64 divisor(i64 oy, i64 ox, bool padded) const {
    const i64 mh = padded ? ph : 0, mw = padded ? pw : 0;
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    return (std::min(top + kh, h + mh) - std::max(top, -mh)) *
           (std::min(left + kw, w + mw) - std::max(left, -mw));
  }
};

// Calls f(plane, scratch) for every plane; scratch holds two lines of outputs.
template <class T, class F> void each_plane(const PoolShape &s, F &&f) {
  // Planes are small: several to a task.
  const i64 group = std::max<i64>(1, (1 << 14) / std::max<i64>(1, s.h * s.w));
  parallel_for<T>(ceil_div(s.planes, group), 2 * s.ow, [&](i64 task, T *scratch) {
    for (i64 p = task * group; p < std::min(s.planes, (task + 1) * group); ++p) f(p, scratch);
  });
}

// One tap against the best so far. Places are kept as T: one width of vector lanes for both, and
// 65536 fits. The first value counts even if it is -inf; the first NaN beats everything.
template <class T>
void compare(i64 begin, i64 end, i64 stride, T tap, const T *__restrict row, T *__restrict best,
             T *__restrict place) {
  for (i64 i = begin; i < end; ++i) {
    const T value = row[stride * i], other = best[i], before = place[i];
    const bool wins = (value > other) | (before < 0) | ((value != value) & (other == other));
    best[i] = wins ? value : other;
    place[i] = wins ? tap : before;
  }
}

template <class T, class Index>
void maxpool(const PoolShape &s, const T *x, T *y, Index *argmax) {
  constexpr T low = -std::numeric_limits<T>::infinity();
  each_plane<T>(s, [&](i64 p, T *best) {
    T *place = best + s.ow;
    for (i64 oy = 0; oy < s.oh; ++oy) {
      std::fill_n(best, s.ow, low);
      std::fill_n(place, s.ow, T(-1));
      s.each_tap(oy, [&](i64 line, i64 tap, i64 offset, i64 begin, i64 end) {
        const T *row = x + (p * s.h + line) * s.w + offset;
        // Constant strides let the compiler make vectors of shuffles.
        if (s.sw == 1)
          compare(begin, end, 1, T(tap), row, best, place);
        else if (s.sw == 2)
          compare(begin, end, 2, T(tap), row, best, place);
        else
          compare(begin, end, s.sw, T(tap), row, best, place);
      });
      const i64 at = (p * s.oh + oy) * s.ow;
      for (i64 ox = 0; ox < s.ow; ++ox) {
        y[at + ox] = best[ox];
        argmax[at + ox] = Index(place[ox]);
      }
    }
  });
}

template <class T, class Index>
void maxpool_dx(const PoolShape &s, const T *dy, const Index *argmax, T *dx) {
  std::vector<std::pair<std::int32_t, std::int32_t>> taps;  // divisions are slow
  for (std::int32_t i = 0; i < s.kh; ++i)
    for (std::int32_t j = 0; j < s.kw; ++j) taps.emplace_back(i, j);
  std::atomic<bool> outside{false};
  each_plane<T>(s, [&](i64 p, T *) {
    T *plane = dx + p * s.h * s.w;
    std::fill_n(plane, s.h * s.w, T(0));
    bool wrong = false;
    for (i64 oy = 0; oy < s.oh; ++oy) {
      const i64 from = (p * s.oh + oy) * s.ow, top = oy * s.sh - s.ph;
      for (i64 ox = 0; ox < s.ow; ++ox) {
        if (argmax[from + ox] >= taps.size()) {
          wrong = true;
          continue;
        }
        const auto [ki, kj] = taps[argmax[from + ox]];
        const i64 line = top + ki, column = ox * s.sw - s.pw + kj;
        // As unsigned numbers the negative ones are too large as well.
        if (std::uint64_t(line) < std::uint64_t(s.h) && std::uint64_t(column) < std::uint64_t(s.w))
          plane[line * s.w + column] += dy[from + ox];
        else
          wrong = true;
      }
    }
    if (wrong) outside = true;
  });
  if (outside) throw std::invalid_argument("argmax: a place lies outside its window or the input");
}

template <class T> void avgpool(const PoolShape &s, bool padded, const T *x, T *y) {
  each_plane<T>(s, [&](i64 p, T *sum) {
    for (i64 oy = 0; oy < s.oh; ++oy) {
      std::fill_n(sum, s.ow, T(0));
      s.each_tap(oy, [&](i64 line, i64, i64 offset, i64 begin, i64 end) {
        const T *row = x + (p * s.h + line) * s.w + offset;
        for (i64 ox = begin; ox < end; ++ox) sum[ox] += row[s.sw * ox];
      });
      for (i64 ox = 0; ox < s.ow; ++ox)
        y[(p * s.oh + oy) * s.ow + ox] = sum[ox] / T(s.divisor(oy, ox, padded));
    }
  });
}

template <class T> void avgpool_dx(const PoolShape &s, bool padded, const T *dy, T *dx) {
  each_plane<T>(s, [&](i64 p, T *share) {
    std::fill_n(dx + p * s.h * s.w, s.h * s.w, T(0));
    for (i64 oy = 0; oy < s.oh; ++oy) {
      for (i64 ox = 0; ox < s.ow; ++ox)
        share[ox] = dy[(p * s.oh + oy) * s.ow + ox] / T(s.divisor(oy, ox, padded));
      s.each_tap(oy, [&](i64 line, i64, i64 offset, i64 begin, i64 end) {
        T *row = dx + (p * s.h + line) * s.w + offset;
        for (i64 ox = begin; ox < end; ++ox) row[s.sw * ox] += share[ox];
      });
    }
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
