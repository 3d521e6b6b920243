// Convolution of every channel by itself (as many groups as channels and outputs): no contraction
// to multiply matrices over, so that channels lie side by side in vector lanes.
#pragma once

#include "cells.h"
#include "conv_shape.h"
#include "gemm.h"

namespace depthwise_method {

inline bool fits(const ConvShape &s) { return s.groups == s.c && s.groups == s.o; }

// Calls f(tap, place, begin, end) for the taps of output line oy that lie inside the input: outputs
// begin … end - 1 read place + ox * sw of it.
template <class F> void each_tap(const ConvShape &s, i64 oy, F &&f) {
  for (i64 ki = 0; ki < s.kh; ++ki) {
    const i64 line = oy * s.sh - s.ph + ki * s.dh;
    if (line < 0 || line >= s.h) continue;
    for (i64 kj = 0; kj < s.kw; ++kj) {
      const i64 offset = kj * s.dw - s.pw;
      const i64 begin = offset < 0 ? ceil_div(-offset, s.sw) : 0;
      const i64 end = offset < s.w ? std::min(s.ow(), (s.w - 1 - offset) / s.sw + 1) : 0;
      f(ki * s.kw + kj, line * s.w + offset, begin, end);
    }
  }
}

// Calls f(example, first channel, channels, taps, x, y) for the channels of every example, `lanes`
// at a time, with room for their cells: of w, x and y.
template <class T, class F> void each_group(const ConvShape &s, F &&f) {
  const i64 groups = ceil_div(s.c, lanes), size = s.h * s.w;
  parallel_for<T>(s.n * groups, (s.taps() + size + s.pixels()) * lanes, [&](i64 task, T *w) {
    const i64 c = task % groups * lanes;
    T *x = w + s.taps() * lanes;
    f(task / groups, c, std::min(lanes, s.c - c), w, x, x + size * lanes);
  });
}

// cells (size, lanes) <- planes (count, size) as operands of products
template <class P, class T> void to_operands(i64 count, i64 size, const T *planes, T *cells) {
  to_cells(count, size, planes, cells);
  for (i64 i = 0; i < size * lanes; ++i) cells[i] = P::operand(cells[i]);
}

template <class P, class T = typename P::Array>
void forward(const ConvShape &s, const T *x, const T *w, const Finish<T> &finish, T *y) {
  const i64 size = s.h * s.w, pixels = s.pixels(), ow = s.ow();
  each_group<T>(s, [&](i64 i, i64 c, i64 count, T *filters, T *image, T *sums) {
    to_operands<P>(count, s.taps(), w + c * s.taps(), filters);
    to_operands<P>(count, size, x + (i * s.c + c) * size, image);
    Cell<T> bias = {};
    for (i64 j = 0; j < count; ++j) bias[j] = finish.bias(c + j);
    for (i64 at = 0; at < pixels; ++at) cell(sums + at * lanes) = bias;
    for (i64 oy = 0; oy < s.oh(); ++oy)
      each_tap(s, oy, [&](i64 tap, i64 place, i64 begin, i64 end) {
        const Cell<T> weight = cell(filters + tap * lanes);
        const T *from = image + place * lanes;
        T *line = sums + oy * ow * lanes;
        for (i64 ox = begin; ox < end; ++ox)
          cell(line + ox * lanes) += weight * cell(from + ox * s.sw * lanes);
      });
    if (finish.relu)
      for (i64 at = 0; at < pixels * lanes; ++at) sums[at] = raised(sums[at], T(0));
    to_planes(count, pixels, sums, y + (i * s.c + c) * pixels);
  });
}

template <class P, class T = typename P::Array>
void input_gradient(const ConvShape &s, const T *dy, const T *w, T *dx) {
  const i64 size = s.h * s.w, pixels = s.pixels(), ow = s.ow();
  each_group<T>(s, [&](i64 i, i64 c, i64 count, T *filters, T *image, T *gradient) {
    to_operands<P>(count, s.taps(), w + c * s.taps(), filters);
    to_operands<P>(count, pixels, dy + (i * s.c + c) * pixels, gradient);
    std::fill_n(image, size * lanes, T(0));
    for (i64 oy = 0; oy < s.oh(); ++oy)
      each_tap(s, oy, [&](i64 tap, i64 place, i64 begin, i64 end) {
        const Cell<T> weight = cell(filters + tap * lanes);
        const T *line = gradient + oy * ow * lanes;
        T *to = image + place * lanes;
        for (i64 ox = begin; ox < end; ++ox)
          cell(to + ox * s.sw * lanes) += weight * cell(line + ox * lanes);
      });
    to_planes(count, size, image, dx + (i * s.c + c) * size);
  });
}

// A task owns `lanes` channels and adds up its examples in order.
template <class P, class T = typename P::Array>
void weight_gradient(const ConvShape &s, const T *x, const T *dy, T *dw) {
  const i64 size = s.h * s.w, pixels = s.pixels(), ow = s.ow(), taps = s.taps();
  parallel_for<T>(ceil_div(s.c, lanes), (taps + size + pixels) * lanes, [&](i64 task, T *sums) {
    const i64 c = task * lanes, count = std::min(lanes, s.c - c);
    T *image = sums + taps * lanes, *gradient = image + size * lanes;
    std::fill_n(sums, taps * lanes, T(0));
    for (i64 i = 0; i < s.n; ++i) {
      to_operands<P>(count, size, x + (i * s.c + c) * size, image);
      to_operands<P>(count, pixels, dy + (i * s.c + c) * pixels, gradient);
      for (i64 oy = 0; oy < s.oh(); ++oy)
        each_tap(s, oy, [&](i64 tap, i64 place, i64 begin, i64 end) {
          const T *from = image + place * lanes, *line = gradient + oy * ow * lanes;
          Cell<T> sum = {};
          for (i64 ox = begin; ox < end; ++ox)
            sum += cell(from + ox * s.sw * lanes) * cell(line + ox * lanes);
          cell(sums + tap * lanes) += sum;
        });
    }
    to_planes(count, taps, sums, dw + c * taps);
  });
}

}  // namespace depthwise_method
