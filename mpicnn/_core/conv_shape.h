// The geometry of one convolution, and the maps between images and columns.
#pragma once

#include "bf16.h"
#include "finish.h"

struct ConvShape {
  i64 n, c, h, w, o, groups;
  i64 kh, kw, sh, sw, ph, pw, dh, dw;

  i64 oh() const { return (h + 2 * ph - dh * (kh - 1) - 1) / sh + 1; }
  i64 ow() const { return (w + 2 * pw - dw * (kw - 1) - 1) / sw + 1; }
  i64 pixels() const { return oh() * ow(); }
  i64 c_group() const { return c / groups; }
  i64 o_group() const { return o / groups; }
  i64 taps() const { return kh * kw; }
  i64 depth() const { return c_group() * taps(); }  // the length of the contraction
  bool pointwise() const {
    return taps() == 1 && sh == 1 && sw == 1 && ph == 0 && pw == 0;
  }
};

// Some lines of output of one or more images, and the padded lines of input that they see: a band.
struct Band {
  const ConvShape &s;
  i64 channels, begin, lines;  // output lines begin … begin + lines - 1

  i64 rows() const { return (lines - 1) * s.sh + s.dh * (s.kh - 1) + 1; }
  i64 pitch() const { return s.w + 2 * s.pw; }
  i64 size() const { return channels * rows() * pitch(); }

  // band (channels, rows, pitch) <- x (channels, h, w), zeros where it is padding
  template <class T, class E> void pad(const T *x, E *band) const {
    for (i64 c = 0; c < channels; ++c)
      for (i64 row = 0; row < rows(); ++row, band += pitch()) {
        const i64 line = begin * s.sh - s.ph + row;
        if (line < 0 || line >= s.h) {
          std::fill_n(band, pitch(), E{});
          continue;
        }
        std::fill_n(band, s.pw, E{});
        convert(s.w, x + (c * s.h + line) * s.w, band + s.pw);
        std::fill_n(band + s.pw + s.w, s.pw, E{});
      }
  }

  // dx (channels, h, w) <- the part of a band of all lines that is not padding
  template <class T> void crop(const T *band, T *dx) const {
    for (i64 c = 0; c < channels; ++c)
      for (i64 line = 0; line < s.h; ++line, dx += s.w)
        if (line + s.ph < rows())
          std::copy_n(band + (c * rows() + line + s.ph) * pitch() + s.pw, s.w, dx);
        else
          std::fill_n(dx, s.w, T(0));
  }

  // Calls f(column line, band line) for the lines of col (channels * taps, examples * count * ow) in
  // the order in which they lie in memory; the columns are of the band's output lines first,
  // first + 1 … first + count - 1.
  template <class C, class B, class F>
  void each_line(i64 examples, i64 first, i64 count, C *col, B *band, F &&f) const {
    const i64 ow = s.ow();
    for (i64 c = 0; c < channels; ++c)
      for (i64 ki = 0; ki < s.kh; ++ki)
        for (i64 kj = 0; kj < s.kw; ++kj)
          for (i64 e = 0; e < examples; ++e) {
            B *tap = band + e * size() + (c * rows() + ki * s.dh) * pitch() + kj * s.dw;
            for (i64 line = first; line < first + count; ++line, col += ow)
              f(col, tap + line * s.sh * pitch());
          }
  }

  // Writes and reads up to `overrun` elements behind the end of col and of the bands.
  static constexpr i64 overrun = 7;

  template <class T> void im2col(i64 examples, const T *band, T *col) const {
    const i64 ow = s.ow(), stride = s.sw;
    each_line(examples, 0, lines, col, band, [=](T *__restrict to, const T *__restrict from) {
      // Whole vectors: what they write behind a line is overwritten by the next one.
      if (stride == 1)
        for (i64 i = 0; i < ow; i += overrun + 1)
          for (i64 lane = 0; lane <= overrun; ++lane) to[i + lane] = from[i + lane];
      else
        for (i64 i = 0; i < ow; ++i) to[i] = from[i * stride];
    });
  }

  // bands += the transpose of im2col applied to the columns of lines first … first + count - 1
  template <class T>
  void col2im(i64 examples, i64 first, i64 count, const T *col, T *bands) const {
    const i64 ow = s.ow(), stride = s.sw;
    each_line(examples, first, count, col, bands, [=](const T *__restrict from, T *__restrict to) {
      if (stride == 1)
        for (i64 i = 0; i < ow; ++i) to[i] += from[i];
      else
        for (i64 i = 0; i < ow; ++i) to[i * stride] += from[i];
    });
  }
};
