// How images are cut into tiles, and the padded lines that tiles are read from.
#pragma once

#include "winograd_transform.h"


namespace winograd {

// The tiles of all images (h, w) in order: `down` x `across` an image, each of `size` lines, the
// next one `step` further; the first begins at line -ph, column -pw. All are numbered through.
struct Tiles {
  i64 h, w, ph, pw, down, across, step, size;

  i64 per_image() const { return down * across; }
  // A line of a tile is read as a whole vector, whatever its size.
  i64 pitch() const { return (across - 1) * step + lanes; }
  i64 lines(i64 tile_rows) const { return (tile_rows - 1) * step + size; }
  // Elements that `pad` writes for any `count` tiles, at most.
  i64 band_size(i64 count) const { return (ceil_div(count - 1, across) + 1) * size * pitch(); }

  // The band of tiles begin … : for each of their images, the lines that they read, zeros where
  // those lie outside. x is one channel of the first image, images lie `image_pitch` apart.
  void pad(const float *x, i64 image_pitch, i64 begin, i64 end, float *band) const {
    for (i64 image = begin / per_image(); image * per_image() < end; ++image) {
      const i64 first = std::max<i64>(begin - image * per_image(), 0) / across;
      const i64 last = (std::min(end - image * per_image(), per_image()) - 1) / across;
      const i64 top = first * step - ph, count = lines(last - first + 1);
      // The part of a line of the band that the image covers.
      const i64 left = std::clamp<i64>(pw, 0, pitch()), right = std::clamp(w + pw, left, pitch());
      const float *plane = x + image * image_pitch + left - pw;
      std::fill_n(band, count * pitch(), 0.0f);
      for (i64 line = std::max<i64>(0, -top); line < std::min(count, h - top); ++line)
        std::copy_n(plane + (top + line) * w, right - left, band + line * pitch() + left);
      band += count * pitch();
    }
  }

  // Where a tile begins in that band.
  i64 offset(i64 begin, i64 tile) const {
    const i64 images = tile / per_image() - begin / per_image();
    const i64 row = tile % per_image() / across, first = begin % per_image() / across;
    const i64 before = images ? lines(down - first) + (images - 1) * lines(down) : -first * step;
    return (before + row * step) * pitch() + tile % across * step;
  }
};

// The first cache line that begins at `memory` or behind: vectors should not cross lines.
constexpr i64 line_floats = 16;
inline float *next_line(float *memory) {
  const auto bytes = line_floats * sizeof(float);
  return reinterpret_cast<float *>((reinterpret_cast<std::uintptr_t>(memory) + bytes - 1) / bytes * bytes);
}

}  // namespace winograd
