// Pooling of planes (height, width): every channel of every example is one plane.

#include "cells.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/pair.h>
#include <stdexcept>
#include <vector>

using Pair = std::pair<i64, i64>;
using Shape4 = std::array<i64, 4>;

struct PoolShape {
  i64 planes, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;

  PoolShape(Shape4 x, Pair out, Pair kernel, Pair stride, Pair padding, Pair dilation)
      : planes(x[0] * x[1]), h(x[2]), w(x[3]), oh(out.first), ow(out.second), kh(kernel.first),
        kw(kernel.second), sh(stride.first), sw(stride.second), ph(padding.first),
        pw(padding.second), dh(dilation.first), dw(dilation.second) {}

  // The lines and columns that a window covers.
  i64 height() const { return (kh - 1) * dh + 1; }
  i64 width() const { return (kw - 1) * dw + 1; }

  // How many taps of an axis lie in front of a place that is so far from the first of them.
  static i64 taps(i64 distance, i64 dilation) {
    return dilation == 1 ? distance : ceil_div(distance, dilation);  // divisions are slow
  }
  static i64 first(i64 start, i64 dilation) { return taps(std::max<i64>(0, -start), dilation); }

  // Calls f(place, tap) for the taps of window (oy, ox) inside the input, in the window's order.
  template <class F> void each_tap(i64 oy, i64 ox, F &&f) const {
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    const i64 begin = first(left, dw), end = std::min(kw, taps(w - left, dw));
    for (i64 ki = first(top, dh); ki < std::min(kh, taps(h - top, dh)); ++ki)
      for (i64 kj = begin; kj < end; ++kj)
        f((top + ki * dh) * w + left + kj * dw, ki * kw + kj);
  }

  // Place and tap of the first of them.
  Pair first_tap(i64 oy, i64 ox) const {
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    const i64 ki = first(top, dh), kj = first(left, dw);
    return {(top + ki * dh) * w + left + kj * dw, ki * kw + kj};
  }

  // The windows of a line that overhang no side, from … to - 1, where windows are two columns wide, lie
  // side by side and are enough for `lanes` at a time; else none.
  Pair pairs() const {
    const i64 from = ceil_div(pw, 2), to = std::min(ow, (w + pw) / 2);
    return kw == 2 && sw == 2 && dh * dw == 1 && to - from >= lanes ? Pair{from, to} : Pair{0, 0};
  }

  // The number of values that the mean of window (oy, ox) counts, as PyTorch counts them.
  i64 divisor(i64 oy, i64 ox, bool padded) const {
    const i64 mh = padded ? ph : 0, mw = padded ? pw : 0;
    const i64 top = oy * sh - ph, left = ox * sw - pw;
    return (std::min(top + kh, h + mh) - std::max(top, -mh)) *
           (std::min(left + kw, w + mw) - std::max(left, -mw));
  }
};

// Calls f(first, last) for runs of planes that are worth a task, with room for `elements`. Few runs
// break a group of `lanes` planes.
template <class T, class F> void each_run(const PoolShape &s, i64 elements, F &&f) {
  constexpr i64 enough = 1 << 13;
  const i64 run = ceil_div(enough, std::max<i64>(1, s.h * s.w) * lanes) * lanes;
  parallel_for<T>(ceil_div(s.planes, run), elements, [&](i64 task, T *room) {
    f(task * run, std::min(s.planes, (task + 1) * run), room);
  });
}

// Calls f(plane, count, cells) for the planes, `lanes` of them side by side: plane … plane + count - 1,
// with room for `size` cells. Whatever the window, all lanes do the same.
template <class T, class F> void each_group(const PoolShape &s, i64 size, F &&f) {
  each_run<T>(s, size * lanes, [&](i64 first, i64 last, T *cells) {
    for (i64 plane = first; plane < last; plane += lanes)
      f(plane, std::min(lanes, last - plane), cells);
  });
}

// The largest values that `lanes` windows have shown so far, and the taps where they were. The first
// value counts even if it is -inf, the first of equals wins, and the first NaN beats everything.
template <class T> struct Largest {
  Cell<T> value;
  Cell<Place<T>> tap;

  Largest(const Cell<T> &first, i64 at) : value(first), tap(Cell<Place<T>>{} + Place<T>(at)) {}

  void offer(const Cell<T> &other, i64 at) {
    const auto wins = ~(other <= value) & (value == value);
    value = wins ? other : value;
    tap = wins ? Cell<Place<T>>{} + Place<T>(at) : tap;
  }
  template <class Index> void write(T *y, Index *argmax) const {
    cell(y) = value;
    for (i64 j = 0; j < lanes; ++j) argmax[j] = Index(tap[j]);
  }
};

// Every other one of 2 * `lanes` values, from the first or from the second on.
template <class T> inline Cell<T> even(const T *from) {
  Cell<T> found;
  choose<T, 0, 2, 4, 6, 8, 10, 12, 14>(cell(from), cell(from + lanes), found);
  return found;
}
template <class T> inline Cell<T> odd(const T *from) {
  Cell<T> found;
  choose<T, 1, 3, 5, 7, 9, 11, 13, 15>(cell(from), cell(from + lanes), found);
  return found;
}

// Any window, of `lanes` planes at a time.
template <class T, class Index>
void maxpool_of_planes(const PoolShape &s, const T *x, T *y, Index *argmax) {
  const i64 size = s.h * s.w, outputs = s.oh * s.ow;
  // Behind the cells of x and y lie those of argmax, which are no larger.
  each_group<T>(s, size + 2 * outputs, [&](i64 plane, i64 count, T *cells) {
    T *values = cells + size * lanes;
    Index *taps = reinterpret_cast<Index *>(values + outputs * lanes);
    to_cells(count, size, x + plane * size, cells);
    for (i64 oy = 0, at = 0; oy < s.oh; ++oy)
      for (i64 ox = 0; ox < s.ow; ++ox, at += lanes) {
        const auto [from, tap] = s.first_tap(oy, ox);
        Largest<T> largest(cell(cells + from * lanes), tap);
        s.each_tap(oy, ox, [&](i64 from, i64 tap) { largest.offer(cell(cells + from * lanes), tap); });
        largest.write(values + at, taps + at);
      }
    to_planes(count, outputs, values, y + plane * outputs);
    to_planes(count, outputs, taps, argmax + plane * outputs);
  });
}

// One window by itself.
template <class T, class Index>
void maxpool_of_window(const PoolShape &s, i64 oy, i64 ox, const T *plane, T *y, Index *argmax) {
  const auto [first, tap] = s.first_tap(oy, ox);
  *y = plane[first];
  *argmax = Index(tap);
  s.each_tap(oy, ox, [&](i64 from, i64 tap) {
    if (plane[from] <= *y || *y != *y) return;
    *y = plane[from];
    *argmax = Index(tap);
  });
}

// `lanes` windows of a line at a time; the last of them may be done twice.
template <class T, class Index>
void maxpool_of_pairs(const PoolShape &s, const T *x, T *y, Index *argmax) {
  const i64 first = s.pairs().first, last = s.pairs().second;
  each_run<T>(s, 0, [&](i64 begin, i64 end, T *) {
    for (i64 plane = begin; plane < end; ++plane)
      for (i64 oy = 0; oy < s.oh; ++oy) {
        const T *from = x + plane * s.h * s.w;
        T *to = y + (plane * s.oh + oy) * s.ow;
        Index *taps = argmax + (plane * s.oh + oy) * s.ow;
        const i64 top = oy * s.sh - s.ph;
        const i64 k_first = std::max<i64>(0, -top), k_last = std::min(s.kh, s.h - top);
        for (i64 ox = 0; ox < first; ++ox) maxpool_of_window(s, oy, ox, from, to + ox, taps + ox);
        for (i64 next = first; next < last; next += lanes) {
          const i64 ox = std::min(next, last - lanes);
          const T *line = from + (top + k_first) * s.w + ox * 2 - s.pw;
          Largest<T> largest(even<T>(line), k_first * 2);
          largest.offer(odd<T>(line), k_first * 2 + 1);
          for (i64 ki = k_first + 1; ki < k_last; ++ki) {
            line += s.w;
            largest.offer(even<T>(line), ki * 2);
            largest.offer(odd<T>(line), ki * 2 + 1);
          }
          largest.write(to + ox, taps + ox);
        }
        for (i64 ox = last; ox < s.ow; ++ox) maxpool_of_window(s, oy, ox, from, to + ox, taps + ox);
      }
  });
}

template <class T, class Index>
void maxpool(const PoolShape &s, const T *x, T *y, Index *argmax) {
  if (s.pairs().second) maxpool_of_pairs(s, x, y, argmax);
  else maxpool_of_planes(s, x, y, argmax);
}

// The gradients of `lanes` windows, in all lines that these see.
template <class T, class Index>
void write_pairs(const PoolShape &s, const T *dy, const Index *argmax, T *dx) {
  const Cell<T> gradient = cell(dy), none = {};
  Cell<Place<T>> tap;
  for (i64 j = 0; j < lanes; ++j) tap[j] = Place<T>(argmax[j]);
  for (i64 ki = 0; ki < s.kh; ++ki, dx += s.w) {
    const Cell<T> left = tap == Place<T>(ki * 2) ? gradient : none;
    const Cell<T> right = tap == Place<T>(ki * 2 + 1) ? gradient : none;
    choose<T, 0, 8, 1, 9, 2, 10, 3, 11>(left, right, cell(dx));
    choose<T, 4, 12, 5, 13, 6, 14, 7, 15>(left, right, cell(dx + lanes));
  }
}

// One plane of dx in pairs, where windows do not overlap: they are written and not added.
template <class T, class Index>
bool write_plane(const PoolShape &s, const T *dy, const Index *argmax, T *dx) {
  const auto [first, last] = s.pairs();
  for (i64 oy = 0; oy < s.oh; ++oy, dy += s.ow, argmax += s.ow) {
    const i64 top = oy * s.sh - s.ph;
    const bool overhangs = top < 0 || top + s.kh > s.h;
    for (i64 next = first; next < last && !overhangs; next += lanes) {
      const i64 ox = std::min(next, last - lanes);
      write_pairs(s, dy + ox, argmax + ox, dx + top * s.w + ox * 2 - s.pw);
    }
    const i64 skipped = overhangs ? 0 : last - first;
    for (i64 i = 0; i < s.ow - skipped; ++i) {
      const i64 ox = i < first ? i : i + skipped;
      const i64 line = top + argmax[ox] / 2, column = ox * 2 - s.pw + argmax[ox] % 2;
      if (line < 0 || column < 0 || line >= s.h || column >= s.w) return false;
      dx[line * s.w + column] = dy[ox];
    }
  }
  return true;
}

template <class T, class Index>
void maxpool_dx(const PoolShape &s, const T *dy, const Index *argmax, T *dx) {
  std::vector<i64> offsets;  // of the taps of a window
  for (i64 i = 0; i < s.kh; ++i)
    for (i64 j = 0; j < s.kw; ++j) offsets.push_back(i * s.dh * s.w + j * s.dw);
  const bool paired = s.pairs().second && s.kh <= s.sh;
  std::atomic<bool> outside{false};
  const auto add = [&](i64 p) {
    const Index *places = argmax + p * s.oh * s.ow;
    T *plane = dx + p * s.h * s.w;
    std::fill_n(plane, s.h * s.w, T(0));
    Index largest = 0;
    for (i64 i = 0; i < s.oh * s.ow; ++i) largest = std::max(largest, places[i]);
    if (largest >= offsets.size()) return false;
    const T *gradient = dy + p * s.oh * s.ow;
    if (paired) return write_plane(s, gradient, places, plane);
    for (i64 oy = 0; oy < s.oh; ++oy) {
      const i64 top = oy * s.sh - s.ph;
      const bool overhangs = top < 0 || top + s.height() > s.h;
      for (i64 ox = 0; ox < s.ow; ++ox, ++places, ++gradient) {
        const i64 left = ox * s.sw - s.pw;
        if (overhangs || left < 0 || left + s.width() > s.w) {
          const i64 line = top + *places / s.kw * s.dh, column = left + *places % s.kw * s.dw;
          if (line < 0 || column < 0 || line >= s.h || column >= s.w) return false;
        }
        plane[top * s.w + left + offsets[*places]] += *gradient;
      }
    }
    return true;
  };
  each_run<T>(s, 0, [&](i64 begin, i64 end, T *) {
    for (i64 p = begin; p < end; ++p)
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
  nb::class_<PoolShape>(m, "PoolShape").def(nb::init<Shape4, Pair, Pair, Pair, Pair, Pair>());
  bind<float>(m);
  bind<double>(m);
}
