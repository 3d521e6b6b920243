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

// Integers of T's width: what comparisons of cells give, and what chooses between them.
template <class T> using Place = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

// to <- the lanes numbered `at` of a (0 … 7) and b (8 … 15). Clang's name for it is new in GCC 12.
template <class T, int... at>
inline void choose(const Cell<T> &a, const Cell<T> &b, Cell<T> &to) {
#ifdef __clang__
  to = __builtin_shufflevector(a, b, at...);
#else
  to = __builtin_shuffle(a, b, Cell<Place<T>>{at...});
#endif
}

// rows (lanes, lanes) <- their transpose
template <class T> inline void transpose(Cell<T> *rows) {
  Cell<T> pairs[lanes], fours[lanes];
  for (i64 i = 0; i < lanes; i += 2) {
    choose<T, 0, 8, 1, 9, 4, 12, 5, 13>(rows[i], rows[i + 1], pairs[i]);
    choose<T, 2, 10, 3, 11, 6, 14, 7, 15>(rows[i], rows[i + 1], pairs[i + 1]);
  }
  for (i64 i = 0; i < lanes; i += 4)
    for (i64 j = 0; j < 2; ++j) {
      const Cell<T> &a = pairs[i + j], &b = pairs[i + 2 + j];
      choose<T, 0, 1, 8, 9, 4, 5, 12, 13>(a, b, fours[i + 2 * j]);
      choose<T, 2, 3, 10, 11, 6, 7, 14, 15>(a, b, fours[i + 2 * j + 1]);
    }
  for (i64 i = 0; i < lanes / 2; ++i) {
    choose<T, 0, 1, 2, 3, 8, 9, 10, 11>(fours[i], fours[i + 4], rows[i]);
    choose<T, 4, 5, 6, 7, 12, 13, 14, 15>(fours[i], fours[i + 4], rows[i + 4]);
  }
}

// cells (size, lanes) <- planes (count, size), each `pitch` behind the one before it; lanes that have
// no plane hold what the last plane has
template <class T> void to_cells(i64 count, i64 size, const T *planes, i64 pitch, T *cells) {
  const T *lane[lanes];
  for (i64 j = 0; j < lanes; ++j) lane[j] = planes + std::min(j, count - 1) * pitch;
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

template <class T> void to_cells(i64 count, i64 size, const T *planes, T *cells) {
  to_cells(count, size, planes, size, cells);
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
