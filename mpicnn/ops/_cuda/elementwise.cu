// Streams over dense memory: what happens to a value does not depend on its place.

// y[i] = f(a[i], b[i]).
template <class F>
__device__ inline void each(i64 n, const real *a, const real *b, real *y, F f) {
  i64 packed = 0;
  if (packable<WIDE>(a) && packable<WIDE>(b) && packable<WIDE>(y)) {
    packed = n / WIDE * WIDE;
    for (i64 i = first_item() * WIDE; i < packed; i += item_step() * WIDE) {
      const Pack<real, WIDE> p = load<WIDE>(a + i), q = load<WIDE>(b + i);
      Pack<real, WIDE> r;
      for (int l = 0; l < WIDE; ++l) r.v[l] = f(p.v[l], q.v[l]);
      store<WIDE>(y + i, r);
    }
  }
  for (i64 i = packed + first_item(); i < n; i += item_step()) y[i] = f(a[i], b[i]);
}

// The functions of mpicnn/ops/activations.py, name_y, and their derivatives times dy, name_dx. NaN
// stays NaN: it makes every comparison false.
__device__ inline real up_to_6(real x) { return x <= 0 ? real(0) : x > 6 ? real(6) : x; }
__device__ inline real logistic(real x) { return real(1) / (real(1) + exp(-x)); }
// The probability of normal numbers below x.
__device__ inline real below(real x) { return real(0.5) * erfc(x * real(-0.7071067811865476)); }
__device__ inline real bell(real x) {
  return real(0.3989422804014327) * exp(real(-0.5) * x * x);
}

extern "C" __global__ void relu_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return x <= 0 ? real(0) : x; });
}
extern "C" __global__ void relu_dx(const real *dy, const real *y, real *dx, i64 n, real slope) {
  each(n, dy, y, dx, [](real dy, real y) { return y > 0 ? dy : real(0); });
}
extern "C" __global__ void relu6_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return up_to_6(x); });
}
extern "C" __global__ void relu6_dx(const real *dy, const real *y, real *dx, i64 n, real slope) {
  each(n, dy, y, dx, [](real dy, real y) { return y > 0 && y < 6 ? dy : real(0); });
}
extern "C" __global__ void leakyrelu_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [slope](real x, real) { return x > 0 ? x : x * slope; });
}
extern "C" __global__ void leakyrelu_dx(const real *dy, const real *y, real *dx, i64 n, real slope) {
  each(n, dy, y, dx, [slope](real dy, real y) { return y > 0 ? dy : dy * slope; });
}
extern "C" __global__ void hardswish_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return x * up_to_6(x + 3) / 6; });
}
extern "C" __global__ void hardswish_dx(const real *dy, const real *x, real *dx, i64 n, real slope) {
  each(n, dy, x, dx, [](real dy, real x) {
    return x <= -3 ? real(0) : x >= 3 ? dy : dy * (x / 3 + real(0.5));
  });
}
extern "C" __global__ void sigmoid_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return logistic(x); });
}
extern "C" __global__ void sigmoid_dx(const real *dy, const real *y, real *dx, i64 n, real slope) {
  each(n, dy, y, dx, [](real dy, real y) { return dy * y * (1 - y); });
}
extern "C" __global__ void tanh_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return tanh(x); });
}
extern "C" __global__ void tanh_dx(const real *dy, const real *y, real *dx, i64 n, real slope) {
  each(n, dy, y, dx, [](real dy, real y) { return dy * (1 - y * y); });
}
extern "C" __global__ void silu_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return x * logistic(x); });
}
extern "C" __global__ void silu_dx(const real *dy, const real *x, real *dx, i64 n, real slope) {
  each(n, dy, x, dx, [](real dy, real x) {
    return dy * logistic(x) * (1 + x * (1 - logistic(x)));
  });
}
extern "C" __global__ void gelu_y(const real *x, real *y, i64 n, real slope) {
  each(n, x, x, y, [](real x, real) { return x * below(x); });
}
extern "C" __global__ void gelu_dx(const real *dy, const real *x, real *dx, i64 n, real slope) {
  each(n, dy, x, dx, [](real dy, real x) { return dy * (below(x) + x * bell(x)); });
}

extern "C" __global__ void mul(const real *x, const real *mask, real *y, i64 n, real none) {
  each(n, x, mask, y, [](real value, real factor) { return value * factor; });
}
