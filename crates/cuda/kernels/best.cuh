// The highest logit and its token as one number, whose maximum is the highest, and among equals the lowest token (best.cu, sample.cu).
#pragma once
#include "common.cuh"

// NaN or +inf is among the logits: above every finite one, and it stays.
#define BAD 0xffffffffffffffffull

// Ordered like the floats they come from; NaN aside.
__device__ __forceinline__ u32 key_of(float x) {
  const u32 bits = __float_as_uint(x == 0.f ? 0.f : x);  // -0 equals 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }
__device__ __forceinline__ u64 pack_best(float logit, int token) { return logit < INFINITY ? (u64)key_of(logit) << 32 | (u32)~token : BAD; }

// Joins the highest of a tile's N logits of each of a warp's 16 rows with those of other tiles. `d`: accumulators of hopper.cuh's products, of rows from
// `row` and tokens from `column` on. Each lane finds the highest of its columns, four lanes agree on a row's, one joins it. The order of joining does not
// matter: of equal logits the lowest token wins, and BAD wins over all.
template <int N>
__device__ __forceinline__ void join_best(float (&d)[N / 2], u64* best, int row, int column, int M, int tokens, float softcap) {
  const int lane = threadIdx.x & 31;
  if (softcap > 0.f) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[i] = softcap * tanhf(d[i] / softcap);
  }
  if (column + N > tokens) {
    // Past the last token: below all that is finite.
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      if (column + i / 4 * 8 + 2 * (lane & 3) + (i & 1) >= tokens) d[i] = -INFINITY;
  }
#pragma unroll
  for (int e = 0; e < 2; e++) {
    float highest = d[2 * e];
    int at = 0;  // which of the lane's
    bool bad = !(highest < INFINITY);
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const float x = d[4 * j + 2 * e + c];
        bad |= !(x < INFINITY);
        if (x > highest) { highest = x; at = 8 * j + c; }
      }
    u64 packed = bad ? BAD : pack_best(highest, column + 2 * (lane & 3) + at);
#pragma unroll
    for (int i = 1; i < 4; i *= 2) {
      const u64 other = __shfl_xor_sync(~0u, packed, i);
      if (other > packed) packed = other;
    }
    const int m = row + (lane >> 2) + 8 * e;
    if ((lane & 3) == 0 && m < M) atomicMax(best + m, packed);
  }
}
