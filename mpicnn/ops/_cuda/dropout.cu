// Dropout with the masks of mpicnn/rng.py, drawn and applied in one pass.

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): the counter x becomes four random words.
__device__ inline void philox(u32 x[4], u32 k0, u32 k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 p0 = (u64)x[0] * 0xD2511F53u, p1 = (u64)x[2] * 0xCD9E8D57u;
    x[0] = (u32)(p1 >> 32) ^ x[1] ^ k0;
    x[2] = (u32)(p0 >> 32) ^ x[3] ^ k1;
    x[1] = (u32)p1;
    x[3] = (u32)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// x, y and mask are (n, pixels, c) in memory. Feature f = first + channel * pixels + pixel is lane
// f % 4 of the counter (f / 4, position, step, layer). A thread draws one counter of one channel;
// neighbouring threads have neighbouring channels, which are neighbours in memory.
extern "C" __global__ void dropout(const real *x, const i64 *positions, real *y, real *mask, i64 n,
                                   i64 c, i64 pixels, i64 first, u32 step, u32 layer, u32 k0,
                                   u32 k1, u64 threshold, real kept) {
  const i64 items = (pixels + 6) / 4 * c;  // the counters that a channel may touch
  for (i64 row = blockIdx.y; row < n; row += gridDim.y)
    for (i64 item = first_item(); item < items; item += item_step()) {
      const i64 channel = item % c, begin = first + channel * pixels;
      const i64 quad = begin / 4 + item / c, pixel = quad * 4 - begin;
      if (pixel >= pixels) continue;
      u32 words[4] = {(u32)quad, (u32)positions[row], step, layer};
      philox(words, k0, k1);
      const i64 at = (row * pixels + pixel) * c + channel;
#pragma unroll
      for (int l = 0; l < 4; ++l) {
        if (pixel + l < 0 || pixel + l >= pixels) continue;
        const real factor = words[l] >= threshold ? kept : real(0);
        y[at + l * c] = x[at + l * c] * factor;
        mask[at + l * c] = factor;
      }
    }
}
