// The inner products of packed bf16 operands, for whichever instructions the CPU has.
#pragma once

#include "bf16.h"

#include <vector>

namespace bf16 {

constexpr i64 block_side = 2 * side;  // rows and columns of sums that a kernel makes at a time

// sums (block_side, block_side) = the first `tiles` tiles of some groups of a times as many of some
// groups of b. Groups lie `pitch` pairs apart in both.
using Block = void (*)(i64 tiles, const Pair *a, const Pair *b, i64 pitch, float *sums);

// Sums are float32; terms are added in an order that the shape alone decides.
struct Kernel {
  const char *name;
  void (*start)(), (*stop)();  // around the blocks that a thread multiplies
  Block blocks[2][2];          // for 1 or 2 groups of a, 1 or 2 of b
};

// What this CPU and its operating system can run, slowest first; the first, "bf16-portable", is
// plain C++, for tests.
const std::vector<Kernel> &kernels();

}  // namespace bf16
