// The product of packed operands, cut into what fits caches, and which instructions make it.

#include "bf16_product.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

namespace bf16 {

// c (m, n) = or += the upper left part of a block
static void put(i64 m, i64 n, const float *sums, float *c, i64 pitch, bool add) {
  for (i64 i = 0; i < m; ++i, sums += block_side, c += pitch)
    if (add)
      for (i64 j = 0; j < n; ++j) c[j] += sums[j];
    else
      std::copy_n(sums, n, c);
}

void product(i64 m, i64 n, i64 k, const Pair *a, const Pair *b, float *c, i64 pitch, bool add) {
  // Tiles summed in registers: two groups of b (32 KiB) stay in the first cache while those of a
  // pass by.
  constexpr i64 longest = 16;
  const Kernel &kernel = *selected.load(std::memory_order_relaxed);
  const i64 tiles = ceil_div(k, terms_per_tile), group = tiles * tile;
  alignas(line_bytes) float sums[block_side * block_side];
  kernel.start();
  for (i64 t = 0; t < tiles; t += longest, add = true)
    for (i64 j = 0; j < n; j += block_side)
      for (i64 i = 0; i < m; i += block_side) {
        const i64 height = std::min(block_side, m - i), width = std::min(block_side, n - j);
        kernel.blocks[height > side][width > side](
            std::min(longest, tiles - t), a + i / side * group + t * tile,
            b + j / side * group + t * tile, group, sums);
        put(height, width, sums, c + i * pitch + j, pitch, add);
      }
  kernel.stop();
}

}  // namespace bf16

void bind_products(nb::module_ &m) {
  m.def("bf16_kernels", [] {
    std::vector<std::string> names;
    for (const bf16::Kernel &kernel : bf16::kernels()) names.push_back(kernel.name);
    return names;
  });
  m.def("set_products", [](const std::string &name) {
    const bf16::Kernel *found = nullptr;
    for (const bf16::Kernel &kernel : bf16::kernels())
      if (name == kernel.name) found = &kernel;
    if (!found && name != "float32") throw std::invalid_argument("no products are called " + name);
    bf16::selected = found;
  });
}
