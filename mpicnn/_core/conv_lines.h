// Convolution, forward and weight gradient, straight from padded lines of the input, in float32: with
// few input channels, columns would take about as long to make as to multiply.
#pragma once

#include "cells.h"
#include "conv_cost.h"
#include "winograd_transform.h"

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

namespace lines_method {

using winograd::unroll;

// The padded input of some output lines of one example and group, each line apart in as many phases
// as the stride is long: what neighbouring outputs read of a phase lies side by side.
struct Lines {
  const ConvShape &s;
  i64 count;  // of output lines, at most

  // The rows that they see, and the length of a phase.
  i64 rows() const { return (count - 1) * s.sh + s.dh * (s.kh - 1) + 1; }
  i64 pitch() const { return s.ow() + (s.kw - 1) * s.dw / s.sw; }
  i64 line() const { return s.sw * pitch(); }
  i64 size() const { return s.c_group() * rows() * line(); }

  // Where the taps of the first output lie.
  std::vector<i64> offsets() const {
    std::vector<i64> found;
    for (i64 c = 0; c < s.c_group(); ++c)
      for (i64 ki = 0; ki < s.kh; ++ki)
        for (i64 kj = 0; kj < s.kw; ++kj) {
          const i64 column = kj * s.dw;
          found.push_back((c * rows() + ki * s.dh) * line() + column % s.sw * pitch() + column / s.sw);
        }
    return found;
  }

  // The lines that outputs from line `begin` on see of x, a group's channels of one example.
  void fill(const float *x, i64 begin, float *to) const {
    for (i64 c = 0; c < s.c_group(); ++c, x += s.h * s.w)
      for (i64 row = 0; row < rows(); ++row) {
        const i64 at = begin * s.sh - s.ph + row;
        for (i64 phase = 0; phase < s.sw; ++phase, to += pitch()) {
          // Elements first … last - 1 of a phase lie inside the image.
          const i64 offset = phase - s.pw;
          const i64 first = std::min(pitch(), offset < 0 ? ceil_div(-offset, s.sw) : 0);
          const bool inside = at >= 0 && at < s.h && offset < s.w;
          const i64 last = inside ? std::clamp((s.w - 1 - offset) / s.sw + 1, first, pitch()) : first;
          const float *from = x + at * s.w + offset;
          std::fill_n(to, first, 0.0f);
          if (s.sw == 1 && inside) std::copy(from + first, from + last, to + first);
          else for (i64 i = first; i < last; ++i) to[i] = from[i * s.sw];
          std::fill_n(to + last, pitch() - last, 0.0f);
        }
      }
  }
};

constexpr i64 first_cache = 1 << 13, most_floats = 1 << 15;  // of what lines are made for at a time

// Whether columns have to be made, lines are not too short, outputs are enough for additions not to
// wait for each other, and what a line sees stays in a cache.
inline bool fits(const ConvShape &s) {
  return !s.pointwise() && s.ow() >= lanes && s.o_group() >= 4 && Lines{s, 1}.size() <= most_floats;
}

// The largest band of output lines whose input fits into so many floats; at least one line.
inline Lines within(i64 floats, const ConvShape &s) {
  const Lines one{s, 1};
  const i64 rows = floats / (s.c_group() * one.line());
  return {s, std::clamp<i64>((rows - one.rows()) / s.sh + 1, 1, s.oh())};
}

// For dw, where 512 pixels of outputs are turned at a time.
inline Lines gradient_lines(const ConvShape &s) {
  return {s, std::clamp<i64>(512 / s.ow(), 1, within(most_floats, s).count)};
}

// What the method costs: conv_cost.h has the figures. Forward, what a line sees is read again for every
// few outputs and must stay in the first cache.
inline double cost(const ConvShape &s, Pass pass) {
  if (pass == Pass::input_gradient || (pass == Pass::forward && Lines{s, 1}.size() > first_cache))
    return std::numeric_limits<double>::infinity();
  const double depth = double(s.depth()), lines = double(s.n * s.groups * s.oh());
  if (pass == Pass::forward) {
    const double pairs = double(s.ow() / 16), singles = double(ceil_div(s.ow() % 16, 8));
    const double terms = depth * (0.29 * pairs + 0.22 * singles);
    return lines * double(s.o_group()) * (terms + 1.5 * (2 * pairs + singles));
  }
  const double vectors = double(ceil_div(s.o_group(), 8)), blocks = std::ceil(vectors / 2) * depth / 6;
  const double line = gradient_lines(s).size() > 2 * first_cache ? 30 : 5.5;
  const double made = double(s.n * s.c * s.h * (s.w + 2 * s.pw));
  return lines * (double(s.ow()) * depth * vectors * 0.14 + blocks * line) + 0.8 * made;
}

// Calls f(constant n) for 1 <= n <= most.
template <int most, class F> void with_constant(i64 n, F &&f) {
  if constexpr (most > 0) {
    if (n == most) f(std::integral_constant<int, most>());
    else with_constant<most - 1>(n, f);
  }
}

// y (outputs lines `pitch` apart) <- the sums over all taps of `vectors` * `lanes` pixels, finished.
// w is (taps, outputs).
template <int outputs, int vectors>
void sum_taps(const std::vector<i64> &offsets, const float *x, const float *w,
              const Finish<float> &finish, i64 pitch, float *y) {
  Cell<float> sum[outputs][vectors] = {};
  for (const i64 offset : offsets) {
    Cell<float> value[vectors];
    unroll<vectors>([&](auto v) { value[v] = cell(x + offset + v * lanes); });
    unroll<outputs>([&](auto o) {
      unroll<vectors>([&](auto v) { sum[o][v] += value[v] * w[o]; });
    });
    w += outputs;
  }
  const Cell<float> least = Cell<float>{} + finish.least();
  unroll<outputs>([&](auto o) {
    unroll<vectors>([&](auto v) {
      const Cell<float> value = sum[o][v] + finish.bias(o);
      cell(y + o * pitch + v * lanes) = value < least ? least : value;
    });
  });
}

inline void forward(const ConvShape &s, const float *x, const float *w, const Finish<float> &finish,
                    float *y) {
  constexpr int most = 6;  // outputs at a time: with two vectors of pixels, the registers of AVX2
  const i64 og = s.o_group(), depth = s.depth(), ow = s.ow(), pixels = s.pixels();
  const i64 blocks = ceil_div(og, most);
  const auto first_of = [&](i64 block) { return og * block / blocks; };
  std::vector<float> packed(size_t(s.o * depth));  // (group, block, tap, output of the block)
  float *to = packed.data();
  for (i64 g = 0; g < s.groups; ++g)
    for (i64 block = 0; block < blocks; ++block)
      for (i64 tap = 0; tap < depth; ++tap)
        for (i64 o = first_of(block); o < first_of(block + 1); ++o)
          *to++ = w[(g * og + o) * depth + tap];

  const Lines lines_seen = within(first_cache, s);
  const std::vector<i64> offsets = lines_seen.offsets();
  const i64 cuts = ceil_div(s.oh(), lines_seen.count);
  parallel_for<float>(s.n * s.groups * cuts, lines_seen.size(), [&](i64 task, float *band) {
    const i64 begin = task % cuts * lines_seen.count, g = task / cuts % s.groups;
    const i64 example = task / cuts / s.groups;
    lines_seen.fill(x + (example * s.groups + g) * s.c_group() * s.h * s.w, begin, band);
    for (i64 oy = begin; oy < std::min(begin + lines_seen.count, s.oh()); ++oy)
      for (i64 block = 0; block < blocks; ++block) {
        const i64 o = g * og + first_of(block);
        with_constant<most>(first_of(block + 1) - first_of(block), [&](auto outputs) {
          const float *line = band + (oy - begin) * s.sh * lines_seen.line();
          float *out = y + (example * s.o + o) * pixels + oy * ow;
          const auto sums = [&](i64 ox, auto vectors) {
            sum_taps<decltype(outputs)::value, decltype(vectors)::value>(
                offsets, line + ox, packed.data() + o * depth, finish.from(o), pixels, out + ox);
          };
          i64 ox = 0;
          for (; ox + 2 * lanes <= ow; ox += 2 * lanes) sums(ox, std::integral_constant<int, 2>());
          // What is left over is done with pixels before it.
          const std::integral_constant<int, 1> one;
          for (; ox < ow; ox += lanes) sums(std::min(ox, ow - lanes), one);
        });
      }
  });
}

// sums (taps, vectors, lanes) += over `count` output lines, dy times what each tap sees. A line of x
// is `step` behind the one before it; dy is (vectors, pixels, lanes), and lanes are outputs.
template <int taps, int vectors>
void sum_pixels(i64 count, i64 width, const i64 *offsets, i64 step, const float *x, const float *dy,
                float *sums) {
  Cell<float> sum[taps][vectors] = {};
  const i64 vector = count * width * lanes;
  for (i64 line = 0; line < count; ++line, x += step)
    for (i64 ox = 0; ox < width; ++ox, dy += lanes) {
      Cell<float> gradient[vectors];
      unroll<vectors>([&](auto v) { gradient[v] = cell(dy + v * vector); });
      unroll<taps>([&](auto t) {
        const float value = x[offsets[t] + ox];
        unroll<vectors>([&](auto v) { sum[t][v] += gradient[v] * value; });
      });
    }
  unroll<taps>([&](auto t) {
    unroll<vectors>([&](auto v) { cell(sums + (t * vectors + v) * lanes) += sum[t][v]; });
  });
}

// Output lines of dy, `panel` outputs at a time, are turned so that lanes are outputs.
inline void weight_gradient(const ConvShape &s, const float *x, const float *dy, float *dw) {
  constexpr i64 panel = 2 * lanes;
  const i64 og = s.o_group(), depth = s.depth(), size = og * depth, ow = s.ow(), pixels = s.pixels();
  const auto vectors_of = [&](i64 o) { return std::min<i64>(2, ceil_div(og - o, lanes)); };
  const Lines lines_seen = gradient_lines(s);
  const std::vector<i64> offsets = lines_seen.offsets();
  const i64 sums_size = ceil_div(og, panel) * panel * depth, turned_size = lines_seen.count * ow * panel;
  // The bits of a sum do not follow the number of threads, so that of the shares does not.
  const i64 shares = std::min<i64>(s.n, 32), tasks = shares * s.groups;
  std::vector<float> partial(size_t(tasks * size));
  parallel_for<float>(tasks, sums_size + turned_size + lines_seen.size(), [&](i64 task, float *sums) {
    const i64 share = task / s.groups, g = task % s.groups;
    float *turned = sums + sums_size, *band = turned + turned_size;
    std::fill_n(sums, sums_size, 0.0f);
    for (i64 i = s.n * share / shares; i < s.n * (share + 1) / shares; ++i)
      for (i64 begin = 0; begin < s.oh(); begin += lines_seen.count) {
        const i64 count = std::min(lines_seen.count, s.oh() - begin), seen = count * ow;
        lines_seen.fill(x + (i * s.groups + g) * s.c_group() * s.h * s.w, begin, band);
        for (i64 o = 0; o < og; o += panel)
          with_constant<2>(vectors_of(o), [&](auto vectors) {
            constexpr int wide = decltype(vectors)::value;
            constexpr int most = wide == 2 ? 6 : 8;  // taps whose sums fill the registers of AVX2
            const float *dy_o = dy + (i * s.o + g * og + o) * pixels + begin * ow;
            for (i64 v = 0; v < wide; ++v, dy_o += lanes * pixels)
              to_cells(std::min(lanes, og - o - v * lanes), seen, dy_o, pixels, turned + v * seen * lanes);
            const i64 blocks = ceil_div(depth, most);
            for (i64 block = 0; block < blocks; ++block) {
              const i64 tap = depth * block / blocks;
              with_constant<most>(depth * (block + 1) / blocks - tap, [&](auto taps) {
                sum_pixels<decltype(taps)::value, wide>(count, ow, offsets.data() + tap,
                                                        s.sh * lines_seen.line(), band, turned,
                                                        sums + o * depth + tap * wide * lanes);
              });
            }
          });
      }
    float *to = partial.data() + task * size;
    for (i64 o = 0; o < og; ++o) {
      const i64 first = o / panel * panel;
      for (i64 tap = 0; tap < depth; ++tap)
        *to++ = sums[first * depth + tap * vectors_of(first) * lanes + o - first];
    }
  });
  add_shares(shares, s.groups * size, partial.data(), dw);
}

}  // namespace lines_method
