// Winograd's methods for convolutions of stride 1 with kernels of r x r: fewer multiplications at
// the price of transforms.
#pragma once

#include "conv_cost.h"
#include "winograd_gradient.h"

template <int m, int r> struct WinogradMethod {
  static bool fits(const ConvShape &s) {
    return s.kh == r && s.kw == r && s.sh == 1 && s.sw == 1 && s.dh == 1 && s.dw == 1;
  }

  // The figures: conv_cost.h.
  static double cost(const ConvShape &s, Pass pass) {
    constexpr double positions = (m + r - 1) * (m + r - 1);
    const bool back = pass == Pass::input_gradient;
    const i64 h = back ? s.h : s.oh(), w = back ? s.w : s.ow();
    const double tiles = double(s.n * ceil_div(h, m) * ceil_div(w, m));
    const double c = double(s.c_group()), o = double(s.o_group());
    const double transforms = tiles * (pass == Pass::forward          ? 0.6 * c + 0.45 * o
                                       : pass == Pass::input_gradient ? 0.6 * o + 0.45 * c
                                                                      : 0.6 * c + 0.6 * o);
    const double products = tiles * c * o * 2 / 85;
    const double sums = pass == Pass::weight_gradient ? 0.3 * c * o * double(ceil_div(i64(tiles), 192)) : 0;
    return double(s.groups) * positions * (transforms + products + 0.8 * c * o + sums);
  }

  static void forward(const ConvShape &s, const float *x, const float *w,
                      const Finish<float> &finish, float *y) {
    for (i64 g = 0; g < s.groups; ++g)
      winograd::Forward<m, r>::convolve(winograd::Geometry::forward(s), x + g * x_group(s), w + g * w_group(s),
                                        false, finish.from(g * s.o_group()), y + g * y_group(s));
  }
  static void input_gradient(const ConvShape &s, const float *dy, const float *w, float *dx) {
    for (i64 g = 0; g < s.groups; ++g)
      winograd::Forward<m, r>::convolve(winograd::Geometry::backward(s), dy + g * y_group(s),
                                        w + g * w_group(s), true, {}, dx + g * x_group(s));
  }
  static void weight_gradient(const ConvShape &s, const float *x, const float *dy, float *dw) {
    for (i64 g = 0; g < s.groups; ++g)
      winograd::WeightGradient<m, r>::compute(winograd::Geometry::forward(s), x + g * x_group(s),
                                              dy + g * y_group(s), dw + g * w_group(s));
  }

 private:
  static i64 x_group(const ConvShape &s) { return s.c_group() * s.h * s.w; }
  static i64 y_group(const ConvShape &s) { return s.o_group() * s.pixels(); }
  static i64 w_group(const ConvShape &s) { return s.o_group() * s.depth(); }
};
