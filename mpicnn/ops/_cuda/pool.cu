// Pooling of images in NHWC. A block takes whole lines, a thread some neighbouring channels of one
// place. Gradients are gathered: a value of dx adds up what the windows that hold it send back, from
// the last window to the first, which is the order of the window's places.

struct Pool {
  i64 n;
  int c, h, w, oh, ow, kh, kw, sh, sw, ph, pw, dh, dw;

  __device__ i64 input(i64 image, int y, int x, int channel) const {
    return ((image * h + y) * w + x) * c + channel;
  }
  __device__ i64 output(i64 image, int y, int x, int channel) const {
    return ((image * oh + y) * ow + x) * c + channel;
  }

  // The number of values that the mean of window (y, x) counts, as PyTorch counts them.
  __device__ int divisor(int y, int x, bool padded) const {
    const int mh = padded ? ph : 0, mw = padded ? pw : 0, top = y * sh - ph, left = x * sw - pw;
    return (min(top + kh, h + mh) - max(top, -mh)) * (min(left + kw, w + mw) - max(left, -mw));
  }
};

// The first tap along an axis that is not in front of the image.
__device__ inline int first_tap(int start, int dilation) {
  const int missing = max(0, -start);
  return dilation == 1 ? missing : (missing + dilation - 1) / dilation;
}

// The windows first … last along an axis that cover a value.
struct Windows {
  int first, last;

  __device__ Windows(int at, int outputs, int reach, int stride, int padding) {
    const int from = at + padding - reach;
    first = from < 0 ? 0 : from / stride + 1;
    last = min(outputs - 1, (at + padding) / stride);
  }
};

// Calls f(image, y, x, channel) for every N-th channel of every place of n images of height lines.
template <int N, class F>
__device__ inline void each_place(i64 n, int height, int width, int c, F f) {
  const u32 packs = c / N, items = width * packs;
  for (i64 line = blockIdx.x; line < n * height; line += gridDim.x) {
    const i64 image = line / height;
    const int y = line - image * height;
    for (u32 item = threadIdx.x; item < items; item += blockDim.x)
      f(image, y, (int)(item / packs), (int)(item % packs) * N);
  }
}

// K is the length of both sides of the window, or 0 where it is not known at compile time.
template <int K, int N, class Index>
__device__ inline void max_forward(const Pool &s, const real *x, real *y, Index *argmax) {
  each_place<N>(s.n, s.oh, s.ow, s.c, [&](i64 image, int oy, int ox, int channel) {
    const int top = oy * s.sh - s.ph, left = ox * s.sw - s.pw;
    const int ki = first_tap(top, s.dh), kj = first_tap(left, s.dw);
    // The first value inside the image counts even if it is -inf; the first NaN beats everything.
    Pack<real, N> best = load<N>(x + s.input(image, top + ki * s.dh, left + kj * s.dw, channel));
    Pack<Index, N> place;
    for (int l = 0; l < N; ++l) place.v[l] = ki * s.kw + kj;
#pragma unroll(K ? K : 1)
    for (int i = 0; i < (K ? K : s.kh); ++i) {
      const int line = top + i * s.dh;
      if (line < 0 || line >= s.h) continue;
#pragma unroll(K ? K : 1)
      for (int j = 0; j < (K ? K : s.kw); ++j) {
        const int column = left + j * s.dw;
        if (column < 0 || column >= s.w) continue;
        const Pack<real, N> value = load<N>(x + s.input(image, line, column, channel));
        for (int l = 0; l < N; ++l)
          if (!(value.v[l] <= best.v[l]) && best.v[l] == best.v[l]) {
            best.v[l] = value.v[l];
            place.v[l] = i * s.kw + j;
          }
      }
    }
    const i64 at = s.output(image, oy, ox, channel);
    store<N>(y + at, best);
    store<N>(argmax + at, place);
  });
}

template <int N, class Index>
__device__ inline void max_backward(const Pool &s, const real *dy, const Index *argmax,
                                           real *dx) {
  each_place<N>(s.n, s.h, s.w, s.c, [&](i64 image, int iy, int ix, int channel) {
    const Windows rows(iy, s.oh, (s.kh - 1) * s.dh + 1, s.sh, s.ph);
    const Windows columns(ix, s.ow, (s.kw - 1) * s.dw + 1, s.sw, s.pw);
    const bool dilated = s.dh * s.dw > 1;
    Pack<real, N> sum = {};
    for (int oy = rows.last; oy >= rows.first; --oy)
      for (int ox = columns.last; ox >= columns.first; --ox) {
        int ki = iy + s.ph - oy * s.sh, kj = ix + s.pw - ox * s.sw;
        if (dilated) {
          if (ki % s.dh || kj % s.dw) continue;
          ki /= s.dh;
          kj /= s.dw;
        }
        const int place = ki * s.kw + kj;
        const i64 at = s.output(image, oy, ox, channel);
        const Pack<Index, N> won = load<N>(argmax + at);
        const Pack<real, N> gradient = load<N>(dy + at);
        for (int l = 0; l < N; ++l)
          if (won.v[l] == place) sum.v[l] += gradient.v[l];
      }
    store<N>(dx + s.input(image, iy, ix, channel), sum);
  });
}

template <int N>
__device__ inline void mean_forward(const Pool &s, bool padded, const real *x, real *y) {
  each_place<N>(s.n, s.oh, s.ow, s.c, [&](i64 image, int oy, int ox, int channel) {
    const int top = oy * s.sh - s.ph, left = ox * s.sw - s.pw;
    const int bottom = min(top + s.kh, s.h), right = min(left + s.kw, s.w);
    Pack<real, N> sum = {};
    for (int iy = max(0, top); iy < bottom; ++iy)
#pragma unroll 4
      for (int ix = max(0, left); ix < right; ++ix) {
        const Pack<real, N> value = load<N>(x + s.input(image, iy, ix, channel));
        for (int l = 0; l < N; ++l) sum.v[l] += value.v[l];
      }
    const real count = s.divisor(oy, ox, padded);
    for (int l = 0; l < N; ++l) sum.v[l] /= count;
    store<N>(y + s.output(image, oy, ox, channel), sum);
  });
}

template <int N>
__device__ inline void mean_backward(const Pool &s, bool padded, const real *dy, real *dx) {
  each_place<N>(s.n, s.h, s.w, s.c, [&](i64 image, int iy, int ix, int channel) {
    const Windows rows(iy, s.oh, s.kh, s.sh, s.ph), columns(ix, s.ow, s.kw, s.sw, s.pw);
    Pack<real, N> sum = {};
    for (int oy = rows.last; oy >= rows.first; --oy)
      for (int ox = columns.last; ox >= columns.first; --ox) {
        const Pack<real, N> gradient = load<N>(dy + s.output(image, oy, ox, channel));
        const real count = s.divisor(oy, ox, padded);
        for (int l = 0; l < N; ++l) sum.v[l] += gradient.v[l] / count;
      }
    store<N>(dx + s.input(image, iy, ix, channel), sum);
  });
}

__device__ inline bool wide(const Pool &s, const real *a, const real *b) {
  return s.c % WIDE == 0 && packable<WIDE>(a) && packable<WIDE>(b);
}

template <int K, class Index>
__device__ inline void max_forward_of(const Pool &s, const real *x, real *y, Index *argmax) {
  if (wide(s, x, y) && packable<WIDE>(argmax))
    max_forward<K, WIDE>(s, x, y, argmax);
  else
    max_forward<K, 1>(s, x, y, argmax);
}

// Windows of at most 256 places are counted in bytes, others in two.
extern "C" __global__ void maxpool(const real *x, real *y, unsigned char *argmax, i64 n, i64 c,
                                   i64 h, i64 w, i64 oh, i64 ow, i64 kh, i64 kw, i64 sh, i64 sw,
                                   i64 ph, i64 pw, i64 dh, i64 dw) {
  const Pool s = {n, (int)c, (int)h, (int)w, (int)oh, (int)ow,
                  (int)kh, (int)kw, (int)sh, (int)sw, (int)ph, (int)pw, (int)dh, (int)dw};
  if (kh == 3 && kw == 3)
    max_forward_of<3>(s, x, y, argmax);
  else if (kh == 2 && kw == 2)
    max_forward_of<2>(s, x, y, argmax);
  else if (kh * kw <= 256)
    max_forward_of<0>(s, x, y, argmax);
  else
    max_forward_of<0>(s, x, y, reinterpret_cast<unsigned short *>(argmax));
}

template <class Index>
__device__ inline void max_backward_of(const Pool &s, const real *dy, const Index *argmax,
                                              real *dx) {
  if (wide(s, dy, dx) && packable<WIDE>(argmax))
    max_backward<WIDE>(s, dy, argmax, dx);
  else
    max_backward<1>(s, dy, argmax, dx);
}

extern "C" __global__ void maxpool_dx(const real *dy, const unsigned char *argmax, real *dx, i64 n,
                                      i64 c, i64 h, i64 w, i64 oh, i64 ow, i64 kh, i64 kw, i64 sh,
                                      i64 sw, i64 ph, i64 pw, i64 dh, i64 dw) {
  const Pool s = {n, (int)c, (int)h, (int)w, (int)oh, (int)ow,
                  (int)kh, (int)kw, (int)sh, (int)sw, (int)ph, (int)pw, (int)dh, (int)dw};
  if (kh * kw <= 256)
    max_backward_of(s, dy, argmax, dx);
  else
    max_backward_of(s, dy, reinterpret_cast<const unsigned short *>(argmax), dx);
}

extern "C" __global__ void avgpool(const real *x, real *y, i64 n, i64 c, i64 h, i64 w, i64 oh,
                                   i64 ow, i64 kh, i64 kw, i64 sh, i64 sw, i64 ph, i64 pw,
                                   i64 dh, i64 dw, i64 padded) {
  const Pool s = {n, (int)c, (int)h, (int)w, (int)oh, (int)ow,
                  (int)kh, (int)kw, (int)sh, (int)sw, (int)ph, (int)pw, (int)dh, (int)dw};
  if (wide(s, x, y))
    mean_forward<WIDE>(s, padded, x, y);
  else
    mean_forward<1>(s, padded, x, y);
}

extern "C" __global__ void avgpool_dx(const real *dy, real *dx, i64 n, i64 c, i64 h, i64 w, i64 oh,
                                      i64 ow, i64 kh, i64 kw, i64 sh, i64 sw, i64 ph, i64 pw,
                                      i64 dh, i64 dw, i64 padded) {
  const Pool s = {n, (int)c, (int)h, (int)w, (int)oh, (int)ow,
                  (int)kh, (int)kw, (int)sh, (int)sw, (int)ph, (int)pw, (int)dh, (int)dw};
  if (wide(s, dy, dx))
    mean_backward<WIDE>(s, padded, dy, dx);
  else
    mean_backward<1>(s, padded, dy, dx);
}
