// What a sum of products still gets before it is stored, in the pass that makes it.
#pragma once

#include "common.h"

#include <limits>

// The bias of its output, where there is one, and, if `relu`, 0 in place of what is negative.
template <class T> struct Finish {
  const T *b = nullptr;
  bool relu = false;

  bool any() const { return b || relu; }
  T bias(i64 o) const { return b ? b[o] : T(0); }
  // What `raised` takes in place of anything below it.
  T least() const { return relu ? T(0) : -std::numeric_limits<T>::infinity(); }
  // For the outputs from o on.
  Finish from(i64 o) const { return {b ? b + o : nullptr, relu}; }
};

// The larger of a value, or of each lane's, and `least`. NaN stays NaN.
template <class V> inline V raised(V value, V least) { return value < least ? least : value; }
