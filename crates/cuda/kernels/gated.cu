// Gate and up for many rows with the activation fused: out[M, N / 2] = activation(f x . Wg^T) * (f x . Wu^T), f the factor of a row's norm, or 1.
//
// 2 M N K operations; must move (M K + N K + M N / 2) * 2 bytes: bound by the tensor cores from M of about 300. Without the fusion the
// product's M N * 2 bytes would be written and read again: 0.12 ms of the 1.4 ms that 4096 rows of an 8B model take.
//
// Tiles of pairs.cuh: as many gates as ups, up to 128, alternating by eight (src/weights.rs). The activation is applied in registers, and the copy engine writes.
#include "pairs.cuh"

#define BOX_BYTES (64 * 64 * 2)  // 64 rows x 64 columns of the result

// activation(factor gate) * factor up of a warpgroup's 64 x N products, to the 64 x N / 2 elements at `to`, as the copy engine takes them.
// `factor`: of the lane's two rows.
template <int N, bool GELU>
__device__ __forceinline__ void stage_result(const float (&d)[N / 2], const float (&factor)[2], u32 to) {
  const int lane = threadIdx.x & 31, r = lane & 15, row = (threadIdx.x >> 5 & 3) * 16 + r;
#pragma unroll
  for (int p = 0; p < N / 16; p += 2) {  // two groups of eight result columns
    u32 v[4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float *gate = &d[(p + i) * 8 + 2 * e], *up = gate + 4;
        v[2 * i + e] = pack_pair(activate(gate[0] * factor[e], GELU) * (up[0] * factor[e]), activate(gate[1] * factor[e], GELU) * (up[1] * factor[e]));
      }
    // Boxes of 64 columns, swizzled, the second up to the tile's last column, so that a narrow tile's columns in the middle are in both. One of 32 is not swizzled.
    constexpr int SECOND = N / 16 - 8;
    const int chunk = p + (lane >> 4);
    if (N == 64) store_matrices(to + row * 64 + chunk * 16, v[0], v[1], v[2], v[3]);
    else if (p < 8) store_matrices(to + row * 128 + ((chunk ^ (r & 7)) << 4), v[0], v[1], v[2], v[3]);
    if (SECOND > 0 && p >= SECOND) store_matrices(to + BOX_BYTES + row * 128 + (((chunk - SECOND) ^ (r & 7)) << 4), v[0], v[1], v[2], v[3]);
  }
}

struct Gated {
  const TensorMap &out_map, &out_part_map;
  const float* factors;
  int M, gelu;
  u32 staging;  // of the warpgroup: where the copy engine takes its results from
  __device__ __forceinline__ bool wants(int) const { return true; }
  template <int N>
  __device__ __forceinline__ void make(Ring& ring, int row, int column, int steps) const {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7;
    const TensorMap& map = N == COLUMNS / 4 ? out_part_map : out_map;
    float d[N / 2], factor[2] = {1.f, 1.f};
    if (factors) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int at = row + group * 64 + (warp & 3) * 16 + (lane >> 2) + 8 * e;
        if (at < M) factor[e] = factors[at];
      }
    }
    multiply_tile<N>(ring, d, steps);
    // The staging area is free when the last tile's stores have read it.
    if (threadIdx.x % 128 == 0) stores_read();
    named_sync(1 + group, 128);
    if (gelu) stage_result<N, true>(d, factor, staging);
    else stage_result<N, false>(d, factor, staging);
    shared_writes_to_async();
    named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
      store_box_2d(map, staging, column / 2, row + group * 64);
      if (N > COLUMNS / 2) store_box_2d(map, staging + BOX_BYTES, column / 2 + N / 2 - 64, row + group * 64);
      stores_commit();
    }
  }
  __device__ __forceinline__ void begin(const Ring& ring, int group) { staging = ring.data + STAGES * STAGE_BYTES + group * 2 * BOX_BYTES; }
  __device__ __forceinline__ void end() const {
    if (threadIdx.x % 128 == 0) stores_done();
  }
};

// `items`: of tiles of WIDE columns.
#define GATED(NAME, WIDE)                                                                                                                                                          \
  extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                                                                                                   \
      NAME(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap w_part_map, const __grid_constant__ TensorMap out_map, \
           const __grid_constant__ TensorMap out_part_map, const float* factors, int M, int N, int K, Items items, int gelu) {                                                     \
    make_tiles<WIDE>(x_map, w_map, w_part_map, items, M, N, K, Gated{out_map, out_part_map, factors, M, gelu, 0});                                                                 \
  }
GATED(gated_256, COLUMNS)
GATED(gated_224, 224)
GATED(gated_192, 192)
