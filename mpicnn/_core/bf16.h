// bfloat16, the upper half of a float32: rounding, and operands packed for products.
//
// Operands are packed in tiles of 16 lines (rows of the left operand, columns of the right one) and
// 32 terms of the sums; what a tile has too many is 0. Two neighbouring terms make a Pair, the
// lower one in the lower half. A tile of the left operand is (line, pair), of the right one
// (pair, line): the layouts that AMX loads, and that AVX512-BF16 can read as well.
#pragma once

#include "cells.h"

#include <cstring>

struct __attribute__((may_alias)) Bf16 {
  std::uint16_t bits;
};

namespace bf16 {

typedef std::uint32_t Pair __attribute__((may_alias));

// The bits of x rounded to nearest, ties to even; the lower half is 0. NaN stays NaN.
inline std::uint32_t rounded_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1);
  return (x == x ? nearest : bits | 0x400000) & 0xffff0000;
}

inline float to_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline Pair pair(float low, float high) { return rounded_bits(low) >> 16 | rounded_bits(high); }
inline Pair pair(Bf16 low, Bf16 high) { return Pair(low.bits) | Pair(high.bits) << 16; }

constexpr i64 side = 16;               // lines of a tile
constexpr i64 terms_per_tile = 32;
constexpr i64 tile = side * terms_per_tile / 2;  // pairs
constexpr i64 line_bytes = 64;         // of a tile, and what tiles are aligned to

// Pairs of a packed operand, with what it takes to align it.
constexpr i64 packed_size(i64 lines, i64 terms) {
  return ceil_div(lines, side) * ceil_div(terms, terms_per_tile) * tile +
         line_bytes / i64(sizeof(Pair));
}

inline Pair *aligned(void *room) {
  const auto address = reinterpret_cast<std::uintptr_t>(room);
  return reinterpret_cast<Pair *>((address + line_bytes - 1) / line_bytes * line_bytes);
}

// to (16, 16) <- the transpose of from
inline void transpose_tile(const Pair *from, Pair *to) {
  static_assert(side == 2 * lanes);
  for (i64 i = 0; i < side; i += lanes)
    for (i64 j = 0; j < side; j += lanes) {
      Cell<float> block[lanes];  // only moved: bits that are no float's survive
      for (i64 l = 0; l < lanes; ++l)
        std::memcpy(&block[l], from + (i + l) * side + j, sizeof block[l]);
      transpose<float>(block);
      for (i64 l = 0; l < lanes; ++l)
        std::memcpy(to + (j + l) * side + i, &block[l], sizeof block[l]);
    }
}

// A matrix (lines, terms) of floats or of Bf16: of two neighbours in memory, either the terms or the
// lines follow each other; the others lie `pitch` apart.
template <class S> struct Operand {
  const S *at;
  i64 pitch;
  bool terms_adjacent;

  Operand from(i64 line, i64 term) const {
    return {at + (terms_adjacent ? line * pitch + term : term * pitch + line), pitch, terms_adjacent};
  }
};

// to <- a whole tile, (line, pair) where terms are neighbours, otherwise (pair, line)
template <class S> void pack_tile(const Operand<S> &from, Pair *to) {
  const i64 pitch = from.pitch;
  for (i64 i = 0; i < side; ++i, to += side) {
    const S *line = from.at + i * pitch, *even = from.at + 2 * i * pitch, *odd = even + pitch;
    if (from.terms_adjacent)
      for (i64 j = 0; j < side; ++j) to[j] = pair(line[2 * j], line[2 * j + 1]);
    else
      for (i64 j = 0; j < side; ++j) to[j] = pair(even[j], odd[j]);
  }
}

// to <- the first tiles of `lines` and `terms`, rounded: (line group, tile) + (line, pair) for the
// left operand of a product, (pair, line) for the right one
template <class S>
void pack(i64 lines, i64 terms, const Operand<S> &from, bool left, Pair *to) {
  for (i64 i = 0; i < lines; i += side)
    for (i64 k = 0; k < terms; k += terms_per_tile, to += tile) {
      Operand<S> block = from.from(i, k);
      S whole[2 * tile];
      if (lines - i < side || terms - k < terms_per_tile) {
        const i64 height = std::min(side, lines - i), length = std::min(terms_per_tile, terms - k);
        const Operand<S> padded{whole, from.terms_adjacent ? terms_per_tile : side,
                                from.terms_adjacent};
        const i64 rows = from.terms_adjacent ? height : length;
        const i64 columns = from.terms_adjacent ? length : height;
        std::fill_n(whole, 2 * tile, S{});
        for (i64 row = 0; row < rows; ++row)
          std::copy_n(block.at + row * block.pitch, columns, whole + row * padded.pitch);
        block = padded;
      }
      if (from.terms_adjacent == left) {
        pack_tile(block, to);
      } else {
        alignas(line_bytes) Pair turned[tile];
        pack_tile(block, turned);
        transpose_tile(turned, to);
      }
    }
}

}  // namespace bf16

// to <- n elements, rounded where they are to be shorter
template <class T> void convert(i64 n, const T *from, T *to) { std::copy_n(from, n, to); }
inline void convert(i64 n, const float *from, Bf16 *to) {
  for (i64 i = 0; i < n; ++i) to[i].bits = std::uint16_t(bf16::rounded_bits(from[i]) >> 16);
}
