// What a convolution costs by each method, for the choice between them.
//
// The estimate is a function of the shape alone, never of a measurement at run time: all ranks and
// all calls choose alike, and results do not depend on the weather. It is nanoseconds of one core
// (Zen 3, AVX2), fitted to float32 layers of LeNet-like to VGG-like networks, 3 to 500 channels:
//
//   columns:   making a column costs 0.2 per element, with a stride 0.5; products run at 75 FLOP/ns;
//   lines:     forward, per term of a sum, 0.29 for two vectors of pixels at once and 0.22 for one;
//              1.5 for each vector of sums; for dw, per term 0.14 for each vector of outputs, 5.5 for
//              each line of 6 terms, 30 where a band is twice the first cache, 0.8 per element made;
//   depthwise: 0.2 per multiplication of a channel with its kernel;
//   Winograd:  per position of a tile, 0.6 for a channel that is transformed to it and 0.45 for one
//              of the products and back; products run at 85 FLOP/ns; per position of a kernel 0.8,
//              and for dw 0.3 more each time that 192 tiles are added.
//
// Other machines have other figures, but the ratios, which decide, change less.
#pragma once

#include "conv_shape.h"

enum class Pass { forward, input_gradient, weight_gradient };

// The cost of products of columns, of which all three passes make or use as many.
inline double column_cost(const ConvShape &s, Pass) {
  const double making = s.sw == 1 ? 0.2 : 0.5;
  return double(s.n * s.pixels() * s.c * s.taps()) * (double(s.o_group()) * 2 / 75 + making);
}

inline double depthwise_cost(const ConvShape &s, Pass) {
  return double(s.n * s.pixels() * s.c * s.taps()) * 0.2;
}
