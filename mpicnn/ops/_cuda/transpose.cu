// Matrices transposed, by tiles that lie in shared memory meanwhile, so that both memories are read
// and written in runs.

enum { EACH = 4, THREADS = 256, TILE = EACH * THREADS };
// Blocks that share a multiprocessor, as many as registers allow that are not spilled.
enum { OCCUPANCY = 24 / sizeof(real) };

// The places of a thread's values in a tile whose lines have `width` values, by `visit(k, line,
// column)`: the block goes along the lines. They may lie behind the tile's last line.
template <class Visit> __device__ inline void places(u32 width, Visit visit) {
  u32 line = threadIdx.x / width, column = threadIdx.x % width;
  const u32 lines = blockDim.x / width, columns = blockDim.x % width;
#pragma unroll
  for (int k = 0; k < EACH; ++k) {
    visit(k, line, column);
    line += lines;
    column += columns;
    if (column >= width) {
      column -= width;
      ++line;
    }
  }
}

// y (n, columns, rows) = x (n, rows, columns). A tile has `down` rows of `across` values, at most
// EACH for every thread. It may take in all of the shorter side, so that a few channels are read and
// written in runs too.
extern "C" __global__ void __launch_bounds__(THREADS, OCCUPANCY)
    transpose(const real *x, real *y, i64 n, i64 rows, i64 columns, i64 down, i64 across) {
  // an odd distance of lines: neither along them nor across do neighbours meet in a bank
  const u32 pitch = across | 1;
  __shared__ real tile[TILE + TILE / 2];
  for (i64 image = blockIdx.z; image < n; image += gridDim.z)
    for (i64 row = blockIdx.y * down; row < rows; row += gridDim.y * down)
      for (i64 column = blockIdx.x * across; column < columns; column += gridDim.x * across) {
        const u32 height = min(down, rows - row), width = min(across, columns - column);
        const real *from = x + (image * rows + row) * columns + column;
        real *to = y + (image * columns + column) * rows + row;
        real values[EACH];  // all are on their way before the first is needed
        places(across, [&](int k, u32 i, u32 j) {
          values[k] = i < height && j < width ? from[i * columns + j] : real(0);
        });
        __syncthreads();  // the last tile may still be read
        places(across, [&](int k, u32 i, u32 j) { tile[i * pitch + j] = values[k]; });
        __syncthreads();
        places(down, [&](int, u32 j, u32 i) {
          if (i < height && j < width) to[j * rows + i] = tile[i * pitch + j];
        });
      }
}
