// Functions of one value without a branch or a call, so that loops over them become vector code.
// NaN stays NaN.
#pragma once

#include "cells.h"

#include <cmath>
#include <cstring>
#include <limits>

// What e**x needs to know of a format. Adding `round` leaves a whole number in the lowest bits.
template <class T> struct Format;
template <> struct Format<float> {
  using Bits = std::uint32_t;
  static constexpr int digits = 23, terms = 7;
  static constexpr float round = 0x1.8p23f, low = -87.3f, high = 88.37f;
  static constexpr float ln2 = 0.693359375f, ln2_rest = -2.12194440e-4f;
  static constexpr Bits bias = 127;
};
template <> struct Format<double> {
  using Bits = std::uint64_t;
  static constexpr int digits = 52, terms = 13;
  static constexpr double round = 0x1.8p52, low = -708.3, high = 709.4;
  static constexpr double ln2 = 6.93147180369123816490e-01, ln2_rest = 1.90821492927058770002e-10;
  static constexpr Bits bias = 1023;
};

// e**x = scale + scale * rest, where scale is the power of 2 nearest to it; x in low … high.
template <class T> struct Power {
  T scale, rest;

  explicit Power(T x) {
    using F = Format<T>;
    x = x < F::low ? F::low : x > F::high ? F::high : x;
    const T shifted = x * T(1.4426950408889634) + F::round, n = shifted - F::round;
    const T r = (x - n * F::ln2) - n * F::ln2_rest;
    T sum = 1;  // Taylor's series: |r| is at most ln(2) / 2
#pragma GCC unroll 12
    for (int k = F::terms; k > 1; --k) sum = T(1) + sum * r * T(1.0 / k);
    rest = sum * r;
    typename F::Bits bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + F::bias) << F::digits;
    std::memcpy(&scale, &bits, sizeof scale);
  }
};

// e**x; 0 where it is subnormal.
template <class T> inline T exponential(T x) {
  const Power<T> power(x);
  const T y = power.scale + power.scale * power.rest;
  return x < Format<T>::low ? T(0) : x > Format<T>::high ? std::numeric_limits<T>::infinity() : y;
}

template <class T> inline T sigmoid(T x) { return T(1) / (T(1) + exponential(-x)); }

// From e**2x - 1, which keeps its digits where x is small.
template <class T> inline T hyperbolic_tangent(T x) {
  const Power<T> power(2 * x);
  const T less_1 = power.scale * power.rest + (power.scale - T(1));
  return less_1 / (less_1 + T(2));
}

// e**(-x * x / 2): the normal distribution's density, but for a factor.
template <class T> inline T bell(T x) { return exponential(x * x * T(-0.5)); }

// The probability of normal numbers below x, given bell(x).
template <class T> inline T below(T x, T bell) {
  // erfc(z) = e**(-z * z) * t * P(u): Chebyshev's approximation for z in 0 … 10.5, where u goes from
  // 1 to -1. Its relative error is below 1e-15.
  constexpr double P[] = {
      0.3594536952057565,     0.2824615625250303,      0.18562958657107742,
      0.10217494751999753,    0.04673916554090259,     0.01741017781911243,
      0.005051644341830501,   0.0010220706321413973,   8.830975627638938e-05,
      -2.2479253944176315e-05, -8.711060385218746e-06, -4.112725865514314e-07,
      3.9334143292904014e-07, 6.85055628153184e-08,    -1.6094822055944285e-08,
      -5.024595382242146e-09, 7.201521767990156e-10,   2.5863426351504236e-10,
      -3.1573754854855345e-11};
  const T far = std::abs(x) * T(0.7071067811865476), z = far > T(10.5) ? T(10.5) : far;
  const T t = T(4) / (T(4) + z), u = T(1) - z / (T(4) + z) * T(58.0 / 21);
  T sum = T(P[18]);
#pragma GCC unroll 18
  for (int k = 17; k >= 0; --k) sum = sum * u + T(P[k]);
  const T tail = T(0.5) * bell * t * sum;
  return x < 0 ? tail : T(1) - tail;
}
