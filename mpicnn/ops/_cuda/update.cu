// What changes parameters, item by item.

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

extern "C" __global__ void descend(real *w, const real *g, i64 n, real rate, real decay) {
  for (i64 i = first_item(); i < n; i += item_step()) w[i] -= rate * (g[i] + decay * w[i]);
}

extern "C" __global__ void nesterov(real *w, real *v, const real *g, i64 n, real rate,
                                    real momentum, real decay) {
  for (i64 i = first_item(); i < n; i += item_step()) {
    const real change = rate * (g[i] + decay * w[i]);
    v[i] = momentum * v[i] - change;
    w[i] += momentum * v[i] - change;
  }
}

// Weights are 1 - beta, as float32 does not hold it near 1; `sum1` and `root2` undo that the moments
// began at 0.
extern "C" __global__ void adam(real *m1, real *m2, real *g, i64 n, real weight1, real weight2,
                                real eps, real sum1, real root2) {
  for (i64 i = first_item(); i < n; i += item_step()) {
    const real d = g[i];
    m1[i] += weight1 * (d - m1[i]);
    m2[i] += weight2 * (d * d - m2[i]);
    g[i] = m1[i] / (sum1 * (sqrt(m2[i]) / root2 + eps));
  }
}
