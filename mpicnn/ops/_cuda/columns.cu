// A convolution's windows as lines of a matrix, and the lines' gradients back into images.
//
// Images are (n, h, w, c). A line has what one output sees: (groups, kh, kw, c / groups).

struct Shape {
  int c, h, w, oh, ow, groups, kh, kw, stride_h, stride_w, pad_h, pad_w, step_h, step_w;
};
#define SHAPE                                                                                      \
  int c, int h, int w, int oh, int ow, int groups, int kh, int kw, int stride_h, int stride_w,     \
      int pad_h, int pad_w, int step_h, int step_w
#define SHAPE_VALUES                                                                               \
  { c, h, w, oh, ow, groups, kh, kw, stride_h, stride_w, pad_h, pad_w, step_h, step_w }

// A row of threads writes the line of one output pixel, N channels at once.
template <int N, class T>
__device__ void lines(const T *x, T *columns, i64 pixels, const Shape &s) {
  u32 packs = s.c / s.groups / N, taps = s.kh * s.kw, line = packs * taps * s.groups;
  i64 step = (i64)gridDim.x * blockDim.y;
  for (i64 pixel = (i64)blockIdx.x * blockDim.y + threadIdx.y; pixel < pixels; pixel += step) {
    i64 rows = pixel / s.ow;
    int top = (int)(rows % s.oh) * s.stride_h - s.pad_h;
    int left = (int)(pixel % s.ow) * s.stride_w - s.pad_w;
    const T *image = x + rows / s.oh * s.h * s.w * s.c;
    T *to = columns + pixel * line * N;
    for (u32 at = threadIdx.x; at < line; at += blockDim.x) {
      u32 tap = at / packs % taps, channel = (at / packs / taps * packs + at % packs) * N;
      int row = top + (int)(tap / s.kw) * s.step_h, column = left + (int)(tap % s.kw) * s.step_w;
      Pack<T, N> values = {};
      if (row >= 0 && row < s.h && column >= 0 && column < s.w)
        values = load<N>(image + ((i64)row * s.w + column) * s.c + channel);
      store(to + (i64)at * N, values);
    }
  }
}

template <class T>
__device__ void lines_of(const T *x, T *columns, i64 pixels, const Shape &s) {
  enum { WIDEST = 16 / sizeof(T) };
  if (s.c / s.groups % WIDEST == 0 && packable<WIDEST>(x))
    lines<WIDEST>(x, columns, pixels, s);
  else
    lines<1>(x, columns, pixels, s);
}

extern "C" __global__ void im2col(const real *x, real *columns, i64 pixels, SHAPE) {
  Shape s = SHAPE_VALUES;
  lines_of(x, columns, pixels, s);
}

extern "C" __global__ void im2col_bf16(const bf16 *x, bf16 *columns, i64 pixels, SHAPE) {
  Shape s = SHAPE_VALUES;
  lines_of(x, columns, pixels, s);
}

// A row of threads adds up, for one pixel of dx, what the lines of all outputs that see it hold.
template <int N>
__device__ void gathered(const real *columns, real *dx, i64 pixels, const Shape &s) {
  u32 packs = s.c / s.groups / N, taps = s.kh * s.kw, line = packs * taps * s.groups;
  i64 step = (i64)gridDim.x * blockDim.y;
  for (i64 pixel = (i64)blockIdx.x * blockDim.y + threadIdx.y; pixel < pixels; pixel += step) {
    i64 rows = pixel / s.w;
    int bottom = (int)(rows % s.h) + s.pad_h, right = (int)(pixel % s.w) + s.pad_w;
    const real *image = columns + rows / s.h * s.oh * s.ow * line * N;
    for (u32 at = threadIdx.x; at < packs * s.groups; at += blockDim.x) {
      u32 in_line = at / packs * taps * packs + at % packs;
      Pack<real, N> sum = {};
      for (int i = 0; i < s.kh; i++) {
        int y = bottom - i * s.step_h;
        if (y < 0 || y % s.stride_h || y / s.stride_h >= s.oh) continue;
        for (int j = 0; j < s.kw; j++) {
          int x = right - j * s.step_w;
          if (x < 0 || x % s.stride_w || x / s.stride_w >= s.ow) continue;
          i64 output = (i64)(y / s.stride_h) * s.ow + x / s.stride_w;
          u32 place = in_line + (i * s.kw + j) * packs;
          Pack<real, N> values = load<N>(image + (output * line + place) * N);
          for (int k = 0; k < N; k++) sum.v[k] += values.v[k];
        }
      }
      store(dx + pixel * s.c + (i64)at * N, sum);
    }
  }
}

extern "C" __global__ void col2im(const real *columns, real *dx, i64 pixels, SHAPE) {
  Shape s = SHAPE_VALUES;
  if (s.c / s.groups % WIDE == 0 && packable<WIDE>(dx))
    gathered<WIDE>(columns, dx, pixels, s);
  else
    gathered<1>(columns, dx, pixels, s);
}
