// Transforms of eight tiles at a time: the lanes of a vector are tiles, or channels of one tile.
#pragma once

#include "common.h"
#include "winograd_matrices.h"

#include <cstring>
#include <utility>

#define ALWAYS_INLINE __attribute__((always_inline))

namespace winograd {

constexpr int lanes = 8;
typedef float Vec __attribute__((vector_size(lanes * sizeof(float))));

inline Vec load(const float *from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store(float *to, const Vec &v) { std::memcpy(to, &v, sizeof v); }

// Calls f(0) … f(n - 1) with compile-time constants.
template <class F, int... i>
ALWAYS_INLINE inline void each(F &&f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>()), ...);
}
template <int n, class F> ALWAYS_INLINE inline void unroll(F &&f) {
  each(f, std::make_integer_sequence<int, n>());
}

// The lanes of a and b that `index` names: 0 … 7 are a's, 8 … 15 are b's.
template <int... index> ALWAYS_INLINE inline Vec shuffle(const Vec &a, const Vec &b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, index...);
#else
  typedef int Index __attribute__((vector_size(lanes * sizeof(int))));
  return __builtin_shuffle(a, b, Index{index...});
#endif
}

// Exchanges the blocks of `side` lanes off the diagonal of two rows that are `side` apart.
template <int side, int... l>
ALWAYS_INLINE inline void exchange(Vec &a, Vec &b, std::integer_sequence<int, l...>) {
  const Vec above = a;
  a = shuffle<(l & side ? lanes + l - side : l)...>(above, b);
  b = shuffle<(l & side ? lanes + l : l + side)...>(above, b);
}

// v[i][l] <- v[l][i]
ALWAYS_INLINE inline void transpose(Vec *v) {
  constexpr auto all = std::make_integer_sequence<int, lanes>();
  unroll<3>([&](auto s) ALWAYS_INLINE {
    constexpr int side = 1 << s;
    unroll<lanes>([&](auto i) ALWAYS_INLINE {
      if constexpr (!(i & side)) exchange<side>(v[i], v[i + side], all);
    });
  });
}

// The sum over the columns first, first + step, … of a row of M times in.
template <const auto &M, int row, int first, int step>
ALWAYS_INLINE inline Vec row_sum(const Vec *in) {
  Vec total{};
  unroll<(M.columns - first + step - 1) / step>([&](auto k) ALWAYS_INLINE {
    constexpr int i = first + k * step;
    if constexpr (M.at[row][i] != 0) total += float(M.at[row][i]) * in[i];
  });
  return total;
}

// out <- M in. The rows of p and -p differ in the sign of odd columns, so that both are made of the
// same two sums. Vectors of out lie `pitch` apart.
template <const auto &M> ALWAYS_INLINE inline void expand(const Vec *in, Vec *out, int pitch) {
  constexpr int last = M.rows - 1;
  out[0] = row_sum<M, 0, 0, 1>(in);
  unroll<M.rows / 2 - 1>([&](auto pair) ALWAYS_INLINE {
    constexpr int j = 2 * pair + 1;
    const Vec even = row_sum<M, j, 0, 2>(in), odd = row_sum<M, j, 1, 2>(in);
    out[j * pitch] = even + odd;
    out[(j + 1) * pitch] = even - odd;
  });
  out[last * pitch] = row_sum<M, last, 0, 1>(in);
}

// out <- transpose(M) in. Vectors of out lie `pitch` apart.
template <const auto &M> ALWAYS_INLINE inline void collapse(const Vec *in, Vec *out, int pitch) {
  constexpr int rows = M.rows, columns = M.columns;
  Vec sum[rows], difference[rows];
  unroll<rows / 2 - 1>([&](auto pair) ALWAYS_INLINE {
    constexpr int j = 2 * pair + 1;
    sum[j] = in[j] + in[j + 1];
    difference[j] = in[j] - in[j + 1];
  });
  unroll<columns>([&](auto i) ALWAYS_INLINE {
    Vec total{};
    if constexpr (M.at[0][i] != 0) total += float(M.at[0][i]) * in[0];
    unroll<rows / 2 - 1>([&](auto pair) ALWAYS_INLINE {
      constexpr int j = 2 * pair + 1;
      total += float(M.at[j][i]) * (i % 2 ? difference[j] : sum[j]);
    });
    if constexpr (M.at[rows - 1][i] != 0) total += float(M.at[rows - 1][i]) * in[rows - 1];
    out[i * pitch] = total;
  });
}

// out (position) <- M d transpose(M), positions `stride` floats apart; line(i, row) gives row i of d.
template <const auto &M, class Line>
ALWAYS_INLINE inline void expand_tiles(Line &&line, float *out, i64 stride) {
  constexpr int rows = M.rows, columns = M.columns;
  Vec half[rows][columns];
  for (int i = 0; i < columns; ++i) {
    Vec row[lanes];
    line(i, row);
    expand<M>(row, &half[0][i], columns);
  }
  for (int j = 0; j < rows; ++j) {
    Vec column[rows];
    expand<M>(half[j], column, 1);
    for (int i = 0; i < rows; ++i) store(out + (i * rows + j) * stride, column[i]);
  }
}

// y (row, column), rows `pitch` vectors apart <- transpose(M) d M, where the positions of d lie `stride` floats apart.
template <const auto &M> ALWAYS_INLINE inline void collapse_tiles(const float *in, i64 stride, Vec *y, int pitch) {
  constexpr int rows = M.rows, columns = M.columns;
  Vec half[columns][rows];
  for (int i = 0; i < rows; ++i) {
    Vec row[rows];
    for (int j = 0; j < rows; ++j) row[j] = load(in + (i * rows + j) * stride);
    collapse<M>(row, &half[0][i], rows);
  }
  for (int j = 0; j < columns; ++j) collapse<M>(half[j], y + j, pitch);
}

}  // namespace winograd
