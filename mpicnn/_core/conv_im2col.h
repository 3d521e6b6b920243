// Convolution as matrix products of blocks of columns: any shape, stride, dilation and group.
//
// Row-major, per example and group: y (o, pixels) = w (o, depth) col (depth, pixels). The columns
// are made a block at a time, so that they are still in a cache when the product reads them. P says
// how matrices are multiplied, and from what columns: Blas, or bf16::Product.
#pragma once

#include "conv_shape.h"
#include "gemm.h"

#include <vector>

namespace im2col_method {

// Bytes of columns made at a time.
constexpr i64 block_bytes = 1 << 20;

// How the output pixels are cut: some lines of one example, or, where images are so small that the
// product would spend its time on packing w, several whole examples side by side.
struct Blocks {
  i64 examples, lines;
  template <class T> static Blocks of(const ConvShape &s, i64 depth, T) {
    const i64 columns = std::max<i64>(block_bytes / i64(sizeof(T)) / depth, 64);
    const i64 examples = std::clamp<i64>(columns / s.pixels(), 1, s.n);
    return {examples, std::clamp<i64>(columns / s.ow(), 1, s.oh())};
  }
};

// pack (o_group, examples * pixels) <- the outputs of a group in dy (examples, o, pixels)
template <class T> void side_by_side(const ConvShape &s, i64 examples, const T *dy, T *pack) {
  for (i64 o = 0; o < s.o_group(); ++o)
    for (i64 e = 0; e < examples; ++e, pack += s.pixels())
      std::copy_n(dy + (e * s.o + o) * s.pixels(), s.pixels(), pack);
}

template <class P, class T = typename P::Array>
void forward(const ConvShape &s, const T *x, const T *w, const Finish<T> &finish, T *y) {
  using Column = typename P::Column;
  const i64 depth = s.depth(), og = s.o_group(), pixels = s.pixels(), ow = s.ow();
  const Blocks block = Blocks::of(s, depth, Column());
  const i64 cuts = ceil_div(s.oh(), block.lines), blocks = ceil_div(s.n, block.examples) * cuts;
  const i64 columns = block.examples > 1 ? block.examples * pixels : block.lines * ow;
  const bool packed = block.examples > 1;
  const bool direct = s.pointwise() && !packed;
  const i64 col_size = direct ? 0 : depth * columns;
  const i64 band_size = direct ? 0 : block.examples * Band{s, s.c_group(), 0, block.lines}.size();

  std::vector<typename P::Shared> filters;
  for (i64 g = 0; g < s.groups; ++g)
    filters.emplace_back(Op::keep, og, depth, w + g * og * depth, depth);

  const i64 pack_size = packed ? og * columns : 0;
  const i64 scratch = band_size + col_size + pack_size + Band::overrun + P::right_size(columns, depth);
  parallel_for<T>(blocks * s.groups, scratch, [&](i64 task, T *room) {
    const i64 g = task % s.groups, cut = task / s.groups % cuts;
    const i64 first = task / s.groups / cuts * block.examples;
    const i64 examples = std::min(block.examples, s.n - first);
    const i64 begin = cut * block.lines, lines = std::min(block.lines, s.oh() - begin);
    const i64 width = lines * ow, n = examples * width;
    const typename P::Left &w_g = filters[size_t(g)].left();
    const T *x_g = x + (first * s.c + g * s.c_group()) * s.h * s.w;
    T *y_g = y + (first * s.o + g * og) * pixels + begin * ow;
    Column *bands = reinterpret_cast<Column *>(room);
    Column *col = reinterpret_cast<Column *>(room + band_size);
    T *pack = room + band_size + col_size, *right = pack + pack_size;
    T *to = packed ? pack : y_g;
    const i64 ldc = packed ? n : pixels;

    if (direct) {
      P::multiply(w_g, Op::keep, n, x_g + begin * ow, pixels, false, to, ldc, right);
    } else {
      const Band band{s, s.c_group(), begin, lines};
      for (i64 e = 0; e < examples; ++e)
        band.pad(x_g + e * s.c * s.h * s.w, bands + e * band.size());
      band.im2col(examples, bands, col);
      P::multiply(w_g, Op::keep, n, col, n, false, to, ldc, right);
    }
    if (!packed && !finish.any()) return;
    const T least = finish.least();
    for (i64 e = 0; e < examples; ++e)
      for (i64 o = 0; o < og; ++o) {
        const T bias = finish.bias(g * og + o);
        const T *source = to + o * ldc + e * width;
        T *target = y_g + (e * s.o + o) * pixels;
        for (i64 p = 0; p < width; ++p) target[p] = raised(source[p] + bias, least);
      }
  });
}

template <class P, class T = typename P::Array>
void input_gradient(const ConvShape &s, const T *dy, const T *w, T *dx) {
  const i64 depth = s.depth(), og = s.o_group(), cg = s.c_group(), pixels = s.pixels(), ow = s.ow();
  // Channels of dx are independent of each other: blocks of them are tasks of their own.
  const i64 channels = std::clamp<i64>(512 / s.taps(), 1, cg);
  const Blocks block = Blocks::of(s, channels * s.taps(), T());
  const bool packed = block.examples > 1, direct = s.pointwise() && !packed;
  const i64 columns = packed ? block.examples * pixels : direct ? pixels : block.lines * ow;
  const i64 col_size = direct ? 0 : channels * s.taps() * columns, cuts = ceil_div(cg, channels);
  const i64 band_size = direct ? 0 : block.examples * Band{s, channels, 0, s.oh()}.size();

  const i64 tasks = ceil_div(s.n, block.examples) * s.groups * cuts;
  const i64 pack_size = packed ? og * columns : 0;
  const i64 left_size = P::left_size(channels * s.taps(), og);
  const i64 scratch = band_size + col_size + pack_size + left_size + P::right_size(columns, og);
  parallel_for<T>(tasks, scratch, [&](i64 task, T *bands) {
    const i64 c = task % cuts * channels, g = task / cuts % s.groups;
    const i64 first = task / cuts / s.groups * block.examples;
    const i64 examples = std::min(block.examples, s.n - first), count = std::min(channels, cg - c);
    const T *w_c = w + g * og * depth + c * s.taps();
    const T *dy_g = dy + (first * s.o + g * og) * pixels;
    T *dx_c = dx + (first * s.c + g * cg + c) * s.h * s.w;
    T *col = bands + band_size, *pack = col + col_size, *right = pack + pack_size + left_size;
    const auto left = P::left(Op::transpose, count * s.taps(), og, w_c, depth, pack + pack_size);

    if (direct) {
      P::multiply(left, Op::keep, pixels, dy_g, pixels, false, dx_c, pixels, right);
      return;
    }
    if (packed) side_by_side(s, examples, dy_g, pack);
    const Band image{s, count, 0, s.oh()};
    std::fill_n(bands, examples * image.size(), T(0));
    for (i64 begin = 0; begin < s.oh(); begin += block.lines) {
      const i64 lines = std::min(block.lines, s.oh() - begin), n = examples * lines * ow;
      P::multiply(left, Op::keep, n, packed ? pack : dy_g + begin * ow, packed ? n : pixels, false,
                  col, n, right);
      image.col2im(examples, begin, lines, col, bands);
    }
    for (i64 e = 0; e < examples; ++e)
      image.crop(bands + e * image.size(), dx_c + e * s.c * s.h * s.w);
  });
}

template <class P, class T = typename P::Array>
void weight_gradient(const ConvShape &s, const T *x, const T *dy, T *dw) {
  using Column = typename P::Column;
  const i64 depth = s.depth(), og = s.o_group(), cg = s.c_group(), pixels = s.pixels(), ow = s.ow();
  // Tasks own blocks of dw's columns. Where dw is too small for that to feed the threads, the
  // examples are shared out as well, over partial sums that are added in order. The number of
  // tasks does not follow the number of threads: neither do the bits of the sum.
  constexpr i64 tasks_wanted = 16;
  const i64 fair = ceil_div(cg * s.groups, tasks_wanted);
  const i64 channels = std::clamp<i64>(std::max(fair, 256 / s.taps()), 1, cg);
  const i64 cuts = ceil_div(cg, channels);
  const i64 shares = std::clamp<i64>(tasks_wanted / (cuts * s.groups), 1, s.n);
  const i64 size = s.o * depth;
  std::vector<T> partial(size_t(shares > 1 ? shares * size : 0));

  const Blocks block = Blocks::of(s, channels * s.taps(), Column());
  const bool packed = block.examples > 1, direct = s.pointwise() && !packed;
  const i64 columns = packed ? block.examples * pixels : block.lines * ow;
  const i64 band_size = direct ? 0 : block.examples * Band{s, channels, 0, block.lines}.size();
  const i64 col_size = direct ? 0 : channels * s.taps() * columns;
  const i64 pack_size = packed ? og * columns : 0, left_size = P::left_size(og, columns);
  const i64 scratch = band_size + col_size + pack_size + Band::overrun + left_size +
                      P::right_size(channels * s.taps(), columns);
  parallel_for<T>(cuts * s.groups * shares, scratch, [&](i64 task, T *room) {
    const i64 c = task % cuts * channels, g = task / cuts % s.groups, share = task / cuts / s.groups;
    const i64 count = std::min(channels, cg - c), end = s.n * (share + 1) / shares;
    T *dw_c = (shares > 1 ? partial.data() + share * size : dw) + g * og * depth + c * s.taps();
    Column *bands = reinterpret_cast<Column *>(room);
    Column *col = reinterpret_cast<Column *>(room + band_size);
    T *pack = room + band_size + col_size, *rows = pack + pack_size, *right = rows + left_size;
    bool add = false;
    for (i64 i = s.n * share / shares; i < end; i += block.examples) {
      const i64 examples = std::min(block.examples, end - i);
      const T *x_c = x + (i * s.c + g * cg + c) * s.h * s.w;
      const T *dy_g = dy + (i * s.o + g * og) * pixels;
      for (i64 begin = 0; begin < s.oh(); begin += block.lines, add = true) {
        const Band band{s, count, begin, std::min(block.lines, s.oh() - begin)};
        const i64 n = examples * band.lines * ow;
        if (direct) {
          const auto left = P::left(Op::keep, og, n, dy_g + begin * ow, pixels, rows);
          P::multiply(left, Op::transpose, count, x_c + begin * ow, pixels, add, dw_c, depth, right);
          continue;
        }
        for (i64 e = 0; e < examples; ++e)
          band.pad(x_c + e * s.c * s.h * s.w, bands + e * band.size());
        band.im2col(examples, bands, col);
        // Behind col, whose last line may have written there.
        if (packed) side_by_side(s, examples, dy_g, pack);
        const auto left = P::left(Op::keep, og, n, packed ? pack : dy_g + begin * ow,
                                  packed ? n : pixels, rows);
        P::multiply(left, Op::transpose, count * s.taps(), col, n, add, dw_c, depth, right);
      }
    }
  });
  if (shares > 1) add_shares(shares, size, partial.data(), dw);
}

}  // namespace im2col_method
