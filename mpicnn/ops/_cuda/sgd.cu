// v <- momentum * v - rate * (g + decay * w), then w <- w + v.

__device__ inline void update(real &w, real &v, real g, real rate, real momentum,
                                     real decay) {
  v = momentum * v - rate * (g + decay * w);
  w += v;
}

extern "C" __global__ void sgd(real *w, real *v, const real *g, i64 n, real rate, real momentum,
                               real decay) {
  i64 packed = 0;
  if (packable<WIDE>(w) && packable<WIDE>(v) && packable<WIDE>(g)) {
    packed = n / WIDE * WIDE;
    for (i64 i = first_item() * WIDE; i < packed; i += item_step() * WIDE) {
      Pack<real, WIDE> a = load<WIDE>(w + i), b = load<WIDE>(v + i);
      const Pack<real, WIDE> d = load<WIDE>(g + i);
      for (int l = 0; l < WIDE; ++l) update(a.v[l], b.v[l], d.v[l], rate, momentum, decay);
      store<WIDE>(w + i, a);
      store<WIDE>(v + i, b);
    }
  }
  for (i64 i = packed + first_item(); i < n; i += item_step())
    update(w[i], v[i], g[i], rate, momentum, decay);
}

// Arrays of n0 x n1 x n2 x n3 values, each with its own strides, which count values.
extern "C" __global__ void sgd_strided(real *w, real *v, const real *g, i64 n0, i64 n1, i64 n2,
                                       i64 n3, i64 w0, i64 w1, i64 w2, i64 w3, i64 v0, i64 v1,
                                       i64 v2, i64 v3, i64 g0, i64 g1, i64 g2, i64 g3, real rate,
                                       real momentum, real decay) {
  const i64 n = n0 * n1 * n2 * n3;
  for (i64 i = first_item(); i < n; i += item_step()) {
    const i64 line = i / n3, plane = line / n2;
    const i64 i3 = i - line * n3, i2 = line - plane * n2, i0 = plane / n1, i1 = plane - i0 * n1;
    update(w[i0 * w0 + i1 * w1 + i2 * w2 + i3 * w3], v[i0 * v0 + i1 * v1 + i2 * v2 + i3 * v3],
           g[i0 * g0 + i1 * g1 + i2 * g2 + i3 * g3], rate, momentum, decay);
  }
}
