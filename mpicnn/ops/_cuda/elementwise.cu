// Streams over dense memory: what happens to a value does not depend on its place, or only on its
// channel.

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

// A thread keeps its channels and goes down the rows.
template <int N>
__device__ inline void scaled_columns(const real *x, const real *scale, const real *shift,
                                             real *y, i64 rows, i64 c) {
  const i64 row_step = (i64)gridDim.x * blockDim.y;
  for (i64 i = ((i64)blockIdx.y * blockDim.x + threadIdx.x) * N; i < c;
       i += (i64)gridDim.y * blockDim.x * N) {
    const Pack<real, N> a = load<N>(scale + i), b = load<N>(shift + i);
#pragma unroll 4
    for (i64 row = (i64)blockIdx.x * blockDim.y + threadIdx.y; row < rows; row += row_step) {
      Pack<real, N> p = load<N>(x + row * c + i);
      for (int l = 0; l < N; ++l) p.v[l] = p.v[l] * a.v[l] + b.v[l];
      store<N>(y + row * c + i, p);
    }
  }
}

extern "C" __global__ void scale_shift(const real *x, const real *scale, const real *shift, real *y,
                                       i64 rows, i64 c) {
  if (c % WIDE == 0 && packable<WIDE>(x) && packable<WIDE>(scale) && packable<WIDE>(shift) &&
      packable<WIDE>(y))
    scaled_columns<WIDE>(x, scale, shift, y, rows, c);
  else
    scaled_columns<1>(x, scale, shift, y, rows, c);
}
