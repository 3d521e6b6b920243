// Planes worked on side by side, one to a vector lane: whatever a window's size, stride and border,
// all lanes do the same with it.
#pragma once

#include "common.h"

#include <type_traits>

constexpr i64 lanes = 8;

// The values of one place in all planes, anywhere in memory.
template <class T>
using Cell __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias)) = T;

template <class T> inline const Cell<T> &cell(const T *at) {
  return *reinterpret_cast<const Cell<T> *>(at);
}
template <class T> inline Cell<T> &cell(T *at) { return *reinterpret_cast<Cell<T> *>(at); }

// rows (lanes, lanes) <- their transpose
template <class T> inline void transpose(Cell<T> *rows) {
  Cell<T> pairs[lanes], fours[lanes];
  for (i64 i = 0; i < lanes; i += 2) {
    const Cell<T> a = rows[i], b = rows[i + 1];
    pairs[i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (i64 i = 0; i < lanes; i += 4)
    for (i64 j = 0; j < 2; ++j) {
      const Cell<T> a = pairs[i + j], b = pairs[i + 2 + j];
      fours[i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * j + 1] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (i64 i = 0; i < lanes / 2; ++i) {
    const Cell<T> a = fours[i], b = fours[i + lanes / 2];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + lanes / 2] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// cells (size, lanes) <- planes (count, size); lanes that have no plane hold anything
template <class T> void to_cells(i64 count, i64 size, const T *planes, T *cells) {
  const T *lane[lanes];
  for (i64 j = 0; j < lanes; ++j) lane[j] = planes + std::min(j, count - 1) * size;
  i64 i = 0;
  for (; i + lanes <= size; i += lanes) {
    Cell<T> block[lanes];
    for (i64 j = 0; j < lanes; ++j) block[j] = cell(lane[j] + i);
    transpose<T>(block);
    for (i64 j = 0; j < lanes; ++j) cell(cells + (i + j) * lanes) = block[j];
  }
  for (; i < size; ++i)
    for (i64 j = 0; j < lanes; ++j) cells[i * lanes + j] = lane[j][i];
}

// planes (count, size) <- cells (size, lanes)
template <class T> void to_planes(i64 count, i64 size, const T *cells, T *planes) {
  i64 i = 0;
  if constexpr (std::is_floating_point_v<T>)
    for (; i + lanes <= size; i += lanes) {
      Cell<T> block[lanes];
      for (i64 j = 0; j < lanes; ++j) block[j] = cell(cells + (i + j) * lanes);
      transpose<T>(block);
      for (i64 j = 0; j < count; ++j) cell(planes + j * size + i) = block[j];
    }
  for (; i < size; ++i)
    for (i64 j = 0; j < count; ++j) planes[j * size + i] = cells[i * lanes + j];
}
