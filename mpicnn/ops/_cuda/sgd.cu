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
