// AMX-BF16, AVX512-BF16, and the same sums in plain C++.
//
// Products of two bf16 numbers are exact in float32. The instructions take denormal operands for 0
// and make no denormal sums.

#include "bf16_kernels.h"

#ifdef MPICNN_BF16_INSTRUCTIONS
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(MPICNN_BF16_INSTRUCTIONS) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bf16 {

static void nothing() {}

// Adds the odd terms first, like vdpbf16ps.
template <int r, int v>
static void portable_block(i64 tiles, const Pair *a, const Pair *b, i64 pitch, float *sums) {
  for (i64 group = 0; group < r; ++group)
    for (i64 panel = 0; panel < v; ++panel) {
      float sum[side][side] = {};
      const Pair *left = a + group * pitch, *right = b + panel * pitch;
      for (i64 t = 0; t < tiles; ++t, left += tile, right += tile)
        for (i64 p = 0; p < side; ++p)
          for (i64 row = 0; row < side; ++row) {
            const Pair weights = left[row * side + p];
            const float odd = to_float(weights & 0xffff0000), even = to_float(weights << 16);
            for (i64 j = 0; j < side; ++j) {
              const Pair values = right[p * side + j];
              sum[row][j] += odd * to_float(values & 0xffff0000);
              sum[row][j] += even * to_float(values << 16);
            }
          }
      for (i64 row = 0; row < side; ++row)
        std::copy_n(sum[row], side, sums + (group * side + row) * block_side + panel * side);
    }
}

static constexpr Kernel portable = {
    "bf16-portable", nothing, nothing,
    {{portable_block<1, 1>, portable_block<1, 2>}, {portable_block<2, 1>, portable_block<2, 2>}}};

#ifdef MPICNN_BF16_INSTRUCTIONS

// Functions of their own target: the rest of the module runs on CPUs without these instructions.
#define AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))
#define AMX_BF16 __attribute__((target("amx-tile,amx-bf16")))

template <int r, int v>
AVX512_BF16 static void avx512_block(i64 tiles, const Pair *a, const Pair *b, i64 pitch,
                                     float *sums) {
  constexpr int rows = 8;  // of two vectors each: 16 sums hide the latency of an addition
  for (i64 row = 0; row < r * side; row += rows) {
    const Pair *left = a + row / side * pitch + row % side * side, *right = b;
    __m512 sum[rows][v] = {};
    for (i64 t = 0; t < tiles; ++t, left += tile, right += tile)
      for (i64 p = 0; p < side; ++p) {
        __m512bh values[v];
#pragma GCC unroll 2
        for (int j = 0; j < v; ++j)
          values[j] = (__m512bh)_mm512_loadu_si512(right + j * pitch + p * side);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i) {
          const __m512bh weight = (__m512bh)_mm512_set1_epi32(int(left[i * side + p]));
#pragma GCC unroll 2
          for (int j = 0; j < v; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], values[j], weight);
        }
      }
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < v; ++j)
        _mm512_storeu_ps(sums + (row + i) * block_side + j * side, sum[i][j]);
  }
}

static constexpr Kernel avx512 = {
    "bf16-avx512", nothing, nothing,
    {{avx512_block<1, 1>, avx512_block<1, 2>}, {avx512_block<2, 1>, avx512_block<2, 2>}}};

// What ldtilecfg reads: eight tile registers of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64 && line_bytes == 64 && side == 16);

// Configures the registers of this thread. A constant, because compilers take the intrinsic to read
// the first 8 bytes only and would leave out stores to the others.
AMX_BF16 static void amx_start() {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
}

AMX_BF16 static void amx_stop() { _tile_release(); }

// Registers 0 … 3 hold sums, 4 and 5 tiles of a, 6 and 7 tiles of b. To be called by its address:
// compilers do not know what the intrinsics read, and everything is in memory before such a call.
template <int r, int v>
AMX_BF16 static void amx_block(i64 tiles, const Pair *a, const Pair *b, i64 pitch, float *sums) {
  _tile_zero(0);
  if constexpr (v == 2) _tile_zero(1);
  if constexpr (r == 2) _tile_zero(2);
  if constexpr (r == 2 && v == 2) _tile_zero(3);
  for (i64 t = 0; t < tiles; ++t, a += tile, b += tile) {
    _tile_loadd(4, a, line_bytes);
    _tile_loadd(6, b, line_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (v == 2) {
      _tile_loadd(7, b + pitch, line_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (r == 2) {
      _tile_loadd(5, a + pitch, line_bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (r == 2 && v == 2) _tile_dpbf16ps(3, 5, 7);
  }
  constexpr i64 line = block_side * sizeof(float);
  _tile_stored(0, sums, line);
  if constexpr (v == 2) _tile_stored(1, sums + side, line);
  if constexpr (r == 2) _tile_stored(2, sums + side * block_side, line);
  if constexpr (r == 2 && v == 2) _tile_stored(3, sums + side * block_side + side, line);
}

static constexpr Kernel amx = {
    "bf16-amx", amx_start, amx_stop,
    {{amx_block<1, 1>, amx_block<1, 2>}, {amx_block<2, 1>, amx_block<2, 2>}}};

// The registers are large: Linux gives them to a process that asks, and answers whether they exist.
static bool tiles_granted() {
#ifdef __linux__
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

static bool has_amx() {
  unsigned a, b, c, d;
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & amx_bf16) && (d & amx_tile) &&
         tiles_granted();
}

#endif  // MPICNN_BF16_INSTRUCTIONS

const std::vector<Kernel> &kernels() {
  static const std::vector<Kernel> all = [] {
    std::vector<Kernel> found{portable};
#ifdef MPICNN_BF16_INSTRUCTIONS
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16"))
      found.push_back(avx512);
    if (has_amx()) found.push_back(amx);
#endif
    return found;
  }();
  return all;
}

}  // namespace bf16
