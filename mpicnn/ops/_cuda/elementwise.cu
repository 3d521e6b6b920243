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

extern "C" __global__ void relu(const real *x, real *y, i64 n) {
  // the comparison is false for NaN, which stays
  each(n, x, x, y, [](real value, real) { return value <= 0 ? real(0) : value; });
}

extern "C" __global__ void relu_dx(const real *dy, const real *y, real *dx, i64 n) {
  each(n, dy, y, dx, [](real gradient, real value) { return value > 0 ? gradient : real(0); });
}

extern "C" __global__ void mul(const real *x, const real *mask, real *y, i64 n) {
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
