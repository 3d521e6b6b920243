// Winograd's convolution forward, which is the gradient by x too.
//
// Per tile of m x m outputs (winograd_matrices.h): y = A^T ((G w G^T) * (B^T x B)) A, where the
// elementwise product, summed over channels, is a matrix product per position. dx is y for the
// input dy and the kernels of w flipped, with inputs and outputs exchanged.
#pragma once

#include "conv_shape.h"
#include "scratch.h"
#include "winograd_product.h"
#include "winograd_tiles.h"

namespace winograd {

// A convolution of stride 1 of x (n, c, h, w) to y (n, o, oh, ow), whose padding may be negative.
// Images lie `x_image` and `y_image` apart, the kernel of output o and input c begins at
// w + o * o_pitch + c * c_pitch.
struct Geometry {
  i64 n, c, h, w, o, oh, ow, ph, pw, o_pitch, c_pitch, x_image, y_image;

  // For one group of channels.
  static Geometry forward(const ConvShape &s) {
    return {s.n, s.c_group(), s.h, s.w, s.o_group(), s.oh(), s.ow(), s.ph, s.pw, s.depth(), s.taps(),
            s.c * s.h * s.w, s.o * s.pixels()};
  }
  static Geometry backward(const ConvShape &s) {
    return {s.n, s.o_group(), s.oh(), s.ow(), s.c_group(), s.h, s.w, s.kh - 1 - s.ph,
            s.kw - 1 - s.pw, s.taps(), s.depth(), s.o * s.pixels(), s.c * s.h * s.w};
  }
};

// Bytes of a transformed operand that are made at a time, unless one group or panel is larger.
constexpr i64 chunk_bytes = 32 << 20;

// The transforms of F(m, r) on the layouts of `product`.
template <int m, int r> struct Transforms {
  using F = Winograd<m, r>;
  static constexpr i64 positions = F::size * F::size, taps = r * r;

  static Tiles input_tiles(const Geometry &g) {
    return {g.h, g.w, g.ph, g.pw, ceil_div(g.oh, m), ceil_div(g.ow, m), m, F::size};
  }
  static Tiles output_tiles(const Geometry &g) {
    return {g.oh, g.ow, 0, 0, ceil_div(g.oh, m), ceil_div(g.ow, m), m, m};
  }

  // to (position) <- the transform by M of eight tiles that begin at from + offset
  template <const auto &M>
  static void expand_lines(const float *from, const i64 *offset, i64 pitch, float *to, i64 stride) {
    expand_tiles<M>([&](int i, Vec *row) {
      for (int l = 0; l < lanes; ++l) row[l] = load(from + offset[l] + i * pitch);
      transpose(row);
    }, to, stride);
  }

  // w <- the taps of the eight kernels at `from`, in reverse if flipped
  static void load_taps(const float *const *from, bool flipped, Vec *w) {
    constexpr int whole = taps / lanes * lanes;
    Vec read[whole + lanes];
    for (int tap = 0; tap < whole; tap += lanes) {
      for (int l = 0; l < lanes; ++l) read[tap + l] = load(from[l] + tap);
      transpose(read + tap);
    }
    for (int tap = whole; tap < taps; ++tap)
      for (int l = 0; l < lanes; ++l) read[tap][l] = from[l][tap];
    for (int tap = 0; tap < taps; ++tap) w[tap] = read[flipped ? taps - 1 - tap : tap];
  }

  // u (group of o, position, c, group) for the outputs begin … end - 1. Lanes beyond the last
  // output repeat it.
  static void weights(const Geometry &g, const float *w, bool flipped, i64 begin, i64 end, float *u) {
    constexpr i64 share = 16;
    const i64 cuts = ceil_div(g.c, share);
    parallel_for<float>(ceil_div(end - begin, group) * cuts, 0, [&](i64 task, float *) {
      const i64 first = task / cuts * group, c_first = task % cuts * share;
      for (i64 c = c_first; c < std::min(g.c, c_first + share); ++c) {
        const float *from[lanes];
        for (i64 l = 0; l < lanes; ++l)
          from[l] = w + std::min(begin + first + l, g.o - 1) * g.o_pitch + c * g.c_pitch;
        Vec kernel[taps];
        load_taps(from, flipped, kernel);
        expand_tiles<F::G>([&](int i, Vec *row) { std::copy_n(kernel + i * r, r, row); },
                           u + first * positions * g.c + c * group, g.c * group);
      }
    });
  }

  // v (panel of tiles, position, c, panel) for the tiles begin … end - 1. Lanes beyond the last tile
  // repeat it.
  static void tiles(const Geometry &g, const float *x, i64 begin, i64 end, float *v) {
    const Tiles tiles = input_tiles(g);
    constexpr i64 share = 16, most = 8 * panel;
    // Lines of tiles are padded as a whole: what is done at a time should be as long.
    const i64 count = std::min(ceil_div(2 * tiles.across, panel) * panel, most);
    const i64 cuts = ceil_div(g.c, share);
    parallel_for<float>(ceil_div(end - begin, count) * cuts, tiles.band_size(count),
                        [&](i64 task, float *band) {
      const i64 first = begin + task / cuts * count, last = std::min(first + count, end);
      const i64 c_first = task % cuts * share;
      i64 offset[most];
      for (i64 i = 0; i < count; ++i) offset[i] = tiles.offset(first, std::min(first + i, last - 1));
      for (i64 c = c_first; c < std::min(g.c, c_first + share); ++c) {
        tiles.pad(x + c * g.h * g.w, g.x_image, first, last, band);
        for (i64 i = 0; i < last - first; i += lanes) {
          const i64 at = first - begin + i;
          expand_lines<F::B>(band, offset + i, tiles.pitch(),
                             v + (at / panel * positions * g.c + c) * panel + at % panel, g.c * panel);
        }
      }
    });
  }
};

template <int m, int r> struct Forward : Transforms<m, r> {
  using Base = Transforms<m, r>;
  using typename Base::F;
  using Base::positions;

  // y = the convolution of x with w, finished
  static void convolve(const Geometry &g, const float *x, const float *w, bool flipped,
                       const Finish<float> &finish, float *y) {
    const i64 tiles = g.n * Base::input_tiles(g).per_image();
    const i64 row_bytes = positions * g.c * i64(sizeof(float));
    const i64 o_groups = ceil_div(g.o, group), t_panels = ceil_div(tiles, panel);
    const i64 o_chunk = std::clamp<i64>(chunk_bytes / (row_bytes * group), 1, o_groups) * group;
    // Where the weights are made once, short chunks of tiles stay in a cache, and those of small
    // images need not take much more memory than they do. Else weights are made for each chunk.
    const i64 image_bytes = g.n * (g.c * g.h * g.w + g.o * g.oh * g.ow) * i64(sizeof(float));
    const i64 t_bytes = o_chunk < g.o ? 2 * chunk_bytes
                                      : std::clamp(image_bytes, chunk_bytes / 8, chunk_bytes / 4);
    const i64 t_chunk = std::clamp<i64>(t_bytes / (row_bytes * panel), 1, t_panels) * panel;
    Scratch scratch(positions * g.c * (o_chunk + t_chunk), 2);
    float *const u = scratch.take(positions * g.c * o_chunk);
    float *const v = scratch.take(positions * g.c * t_chunk);
    for (i64 t = 0; t < tiles; t += t_chunk) {
      const i64 t_end = std::min(t + t_chunk, tiles);
      Base::tiles(g, x, t, t_end, v);
      for (i64 o = 0; o < g.o; o += o_chunk) {
        const i64 o_end = std::min(o + o_chunk, g.o);
        if (t == 0 || o_chunk < g.o) Base::weights(g, w, flipped, o, o_end, u);
        multiply(g, u, v, o, o_end, t, t_end, finish, y);
      }
    }
  }

 private:
  static constexpr i64 most_panels = 4;

  // y for the outputs o … o_end - 1 of the tiles t … t_end - 1
  static void multiply(const Geometry &g, const float *u, const float *v, i64 o, i64 o_end, i64 t,
                       i64 t_end, const Finish<float> &finish, float *y) {
    // Products of few terms are bound by what they write, which should stay in a core's cache.
    i64 panels = std::clamp<i64>(g.c / 64, 1, std::min(most_panels, ceil_div(t_end - t, panel)));
    i64 height = std::min<i64>(64, ceil_div(o_end - o, group) * group);
    // Few outputs of many channels would be one task; how products are cut does not change a bit.
    const auto tasks = [&] { return ceil_div(t_end - t, panels * panel) * ceil_div(o_end - o, height); };
    while (tasks() < thread_count && panels > 1) panels = ceil_div(panels, 2);
    while (tasks() < thread_count && height > 2 * group) height = ceil_div(height, 2 * group) * group;
    const i64 across = ceil_div(t_end - t, panels * panel), row_pitch = panels * positions * panel;
    parallel_for<float>(across * ceil_div(o_end - o, height), height * row_pitch + line_floats,
                        [&](i64 task, float *scratch) {
      float *products = next_line(scratch);
      const i64 first = task % across * panels * panel, row = task / across * height;
      const i64 columns = std::min(panels * panel, t_end - t - first);
      const i64 rows = std::min(height, o_end - o - row);
      for (i64 p = 0; p < positions; ++p)
        product(rows, columns, g.c, u + (row * positions + p * group) * g.c, positions * g.c * group,
                v + (first * positions + p * panel) * g.c, positions * g.c * panel,
                products + p * panel, row_pitch, positions * panel, false);
      Place places[most_panels * panel];
      for (i64 i = 0; i < columns; ++i) places[i] = Place::of(g, t + first + i);
      for (i64 i = 0; i < rows; ++i) {
        const i64 channel = o + row + i;
        for (i64 j = 0; j < columns; j += lanes)
          store_tiles(products + i * row_pitch + j / panel * positions * panel + j % panel, places + j,
                      std::min<i64>(lanes, columns - j), finish.bias(channel), finish.least(), g.ow,
                      y + channel * g.oh * g.ow);
      }
    });
  }

  // Where a tile of outputs lies in y, and how much of it lies inside.
  struct Place {
    i64 offset, lines, columns;
    static Place of(const Geometry &g, i64 tile) {
      const Tiles tiles = Base::output_tiles(g);
      const i64 at = tile % tiles.per_image();
      const i64 i = at / tiles.across * m, j = at % tiles.across * m;
      return {tile / tiles.per_image() * g.y_image + i * g.ow + j, std::min<i64>(m, g.oh - i),
              std::min<i64>(m, g.ow - j)};
    }
  };

  // y's tiles at `count` places <- products, plus bias, but not below `least`
  static void store_tiles(const float *products, const Place *places, i64 count, float bias,
                          float least, i64 pitch, float *y) {
    Vec tile[m][lanes] = {};
    collapse_tiles<F::A>(products, panel, tile[0], lanes);
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < m; ++j) tile[i][j] = raised(tile[i][j] + bias, Vec{} + least);
      transpose(tile[i]);
    }
    for (i64 l = 0; l < count; ++l) {
      float *to = y + places[l].offset;
      for (i64 i = 0; i < places[l].lines; ++i, to += pitch)
        if (places[l].columns == m) std::memcpy(to, &tile[i][l], m * sizeof(float));
        else std::memcpy(to, &tile[i][l], size_t(places[l].columns) * sizeof(float));
    }
  }
};

}  // namespace winograd
