// The products of Winograd's convolution: one small matrix product per position of the transform.
//
// Both operands come packed from the transforms, which no BLAS would take: a general product would
// spend its time on packing matrices that are used once.
#pragma once

#include "winograd_transform.h"

namespace winograd {

// Registers decide the block of c that is summed at a time: `rows` lines of `wide` vectors.
#if defined(__AVX512F__)
constexpr int width = 16, wide = 3, rows = 8;
#elif defined(__AVX__)
constexpr int width = 8, wide = 3, rows = 4;
#else
constexpr int width = 4, wide = 2, rows = 4;
#endif

constexpr i64 group = 8;              // rows of a are packed in groups (k, group)
constexpr i64 panel = wide * width;   // columns of b are packed in panels (k, panel)
constexpr i64 longest = 192;          // terms summed in registers before they are added to c

// c (r, v vectors) = or += a (k, r of a group)^T b (k, v vectors of a panel); rows of c `pitch` apart
template <int r, int v>
void block(i64 k, const float *a, const float *b, float *c, i64 pitch, bool add) {
  typedef float Wide __attribute__((vector_size(width * sizeof(float))));
  Wide sum[r][v] = {};
  for (i64 i = 0; i < k; ++i, a += group, b += panel) {
    Wide line[v];
    unroll<v>([&](auto column) ALWAYS_INLINE {
      std::memcpy(&line[column], b + column * width, sizeof line[column]);
    });
    unroll<r>([&](auto row) ALWAYS_INLINE {
      unroll<v>([&](auto column) ALWAYS_INLINE { sum[row][column] += a[row] * line[column]; });
    });
  }
  unroll<r>([&](auto row) ALWAYS_INLINE {
    unroll<v>([&](auto column) ALWAYS_INLINE {
      float *to = c + row * pitch + column * width;
      Wide before{};
      if (add) std::memcpy(&before, to, sizeof before);
      before += sum[row][column];
      std::memcpy(to, &before, sizeof before);
    });
  });
}

// c (lines, v vectors) = or += the product of one group of a and one panel of b
template <int v>
void group_block(i64 lines, i64 k, const float *a, const float *b, float *c, i64 pitch, bool add) {
  constexpr int step = v == 1 ? int(group) : rows;  // a few sums more hide the latency of each
  for (i64 row = 0; row < lines; row += step) block<step, v>(k, a + row, b, c + row * pitch, pitch, add);
}

// c = or += a b for blocks of whole groups and panels at one position. Rows of c lie `pitch` apart,
// panels of c `panel_pitch`; groups of a and panels of b `a_pitch` and `b_pitch`.
inline void product(i64 m, i64 n, i64 k, const float *a, i64 a_pitch, const float *b, i64 b_pitch,
                    float *c, i64 pitch, i64 panel_pitch, bool add) {
  const i64 parts = ceil_div(k, longest);
  for (i64 part = 0; part < parts; ++part, add = true) {
    const i64 begin = k * part / parts, length = k * (part + 1) / parts - begin;
    for (i64 j = 0; j < n; j += panel)
      for (i64 i = 0; i < m; i += group) {
        const float *a_i = a + i / group * a_pitch + begin * group;
        const float *b_j = b + j / panel * b_pitch + begin * panel;
        float *c_ij = c + i * pitch + j / panel * panel_pitch;
        const i64 lines = std::min(group, m - i), vectors = ceil_div(std::min(panel, n - j), width);
        if (vectors == 1) group_block<1>(lines, length, a_i, b_j, c_ij, pitch, add);
        else if (vectors == 2) group_block<2>(lines, length, a_i, b_j, c_ij, pitch, add);
        else group_block<wide>(lines, length, a_i, b_j, c_ij, pitch, add);
      }
  }
}

}  // namespace winograd
