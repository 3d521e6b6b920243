// Winograd's convolution: the gradient by w, the adjoint of the forward pass in w.
//
// dw = G^T (sum over tiles of (A dy A^T) * (B^T x B)) G: at each position a matrix product over
// tiles. The tiles are cut by the shape alone and added in order.
#pragma once

#include "winograd_forward.h"

namespace winograd {

template <int m, int r> struct WeightGradient : Transforms<m, r> {
  using Base = Transforms<m, r>;
  using typename Base::F;
  using Base::positions;
  using Base::taps;

  static void compute(const Geometry &g, const float *x, const float *dy, float *dw) {
    const Operand of_x{x, g.c, g.x_image, g.c_pitch, Base::input_tiles(g),
                       Base::template expand_lines<F::B>};
    const Operand of_dy{dy, g.o, g.y_image, g.o_pitch, Base::output_tiles(g),
                        Base::template expand_lines<F::A>};
    // Columns come in panels, which many channels fill better.
    const Operand &a = g.c < g.o ? of_x : of_dy, &b = g.c < g.o ? of_dy : of_x;
    const i64 tiles = g.n * a.tiles.per_image();
    constexpr i64 budget = chunk_bytes / i64(sizeof(float)) / positions;
    const i64 height = std::min<i64>(ceil_div(a.channels, group) * group, 512);
    const i64 panels = std::clamp<i64>(budget / height / panel, 1, ceil_div(b.channels, panel));
    const i64 breadth = panels * panel;
    const i64 depth = std::min({std::max<i64>(budget / (height + breadth), 16), tiles, longest});
    Scratch scratch(positions * ((height + breadth) * depth + height * breadth), 3);
    float *const rows = scratch.take(positions * height * depth);
    float *const columns = scratch.take(positions * breadth * depth);
    float *const sums = scratch.take(positions * height * breadth);
    for (i64 i = 0; i < a.channels; i += height)
      for (i64 j = 0; j < b.channels; j += breadth) {
        const Part part{std::min(height, a.channels - i), std::min(breadth, b.channels - j), height, breadth};
        for (i64 t = 0; t < tiles; t += depth) {
          const i64 count = std::min(depth, tiles - t);
          a.transform(i, part.rows, t, count, group, rows);
          b.transform(j, part.columns, t, count, panel, columns);
          part.add(count, rows, columns, t > 0, sums);
        }
        part.collapse(sums, a.dw_pitch, b.dw_pitch, dw + i * a.dw_pitch + j * b.dw_pitch);
      }
  }

 private:
  // One of the tensors that dw is made of: its tiles, how to expand them, its channel's place in dw.
  struct Operand {
    const float *images;
    i64 channels, image_pitch, dw_pitch;
    Tiles tiles;
    void (*expand)(const float *from, const i64 *offset, i64 pitch, float *to, i64 stride);

    // to (part of the channels, position, tile, part) <- `wanted` channels from c on of `count` tiles
    // from t on. Lanes beyond the last channel repeat it.
    void transform(i64 c, i64 wanted, i64 t, i64 count, i64 part, float *to) const {
      constexpr i64 share = 24;
      const i64 cuts = ceil_div(count, share), band_size = tiles.band_size(share);
      parallel_for<float>(ceil_div(wanted, lanes) * cuts, lanes * band_size,
                          [&](i64 task, float *bands) {
        const i64 lane = task / cuts * lanes, first = t + task % cuts * share;
        const i64 last = std::min(first + share, t + count);
        i64 offset[lanes];
        for (i64 l = 0; l < lanes; ++l) {
          const i64 channel = std::min(c + lane + l, channels - 1);
          offset[l] = l * band_size;
          tiles.pad(images + channel * tiles.h * tiles.w, image_pitch, first, last, bands + offset[l]);
        }
        float *lane_to = to + lane / part * part * positions * count + lane % part;
        for (i64 tile = first; tile < last; ++tile)
          expand(bands + tiles.offset(first, tile), offset, tiles.pitch(),
                 lane_to + (tile - t) * part, count * part);
      });
    }
  };

  // A block of dw at all positions: sums (position, height, width), of which rows x columns are used.
  struct Part {
    i64 rows, columns, height, width;

    // sums = or += the products over k tiles
    void add(i64 k, const float *a, const float *b, bool add, float *sums) const {
      constexpr i64 share = 64;
      const i64 cuts = ceil_div(rows, share);
      parallel_for<float>(positions * cuts, 0, [&](i64 task, float *) {
        const i64 p = task / cuts, i = task % cuts * share;
        product(std::min(share, rows - i), columns, k, a + (i * positions + p * group) * k,
                positions * k * group, b + p * k * panel, positions * k * panel,
                sums + (p * height + i) * width, width, panel, add);
      });
    }

    // dw <- the transforms of the sums
    void collapse(const float *sums, i64 row_pitch, i64 column_pitch, float *dw) const {
      parallel_for<float>(rows, 0, [&](i64 row, float *) {
        constexpr int whole = taps / lanes * lanes;
        for (i64 column = 0; column < columns; column += lanes) {
          Vec w[whole + lanes];
          collapse_tiles<F::G>(sums + row * width + column, height * width, w, r);
          for (int tap = 0; tap < whole; tap += lanes) transpose(w + tap);
          for (i64 l = 0; l < std::min<i64>(lanes, columns - column); ++l) {
            float *to = dw + row * row_pitch + (column + l) * column_pitch;
            for (int tap = 0; tap < whole; tap += lanes) store(to + tap, w[tap + l]);
            for (int tap = whole; tap < taps; ++tap) to[tap] = w[tap][l];
          }
        }
      });
    }
  };
};

}  // namespace winograd
