// Gate and up for many rows with the activation fused: out[M, N / 2] = activation(f x . Wg^T) * (f x . Wu^T), f the factor of a row's norm, or 1.
//
// 2 M N K operations; must move (M K + N K + M N / 2) * 2 bytes: bound by the tensor cores from M of about 300. Without the fusion the
// product's M N * 2 bytes would be written and read again: 0.12 ms of the 1.4 ms that 4096 rows of an 8B model take.
//
// Tiles of pairs.cuh: 128 gates and 128 ups, alternating by eight (src/weights.rs). The activation is applied in registers, and the copy engine writes.
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
    const int chunk = p + (lane >> 4);
    // Boxes of 64 columns, swizzled; one of 32 is not.
    const u32 offset = N == 64 ? row * 64 + chunk * 16 : chunk / 8 * BOX_BYTES + row * 128 + (((chunk & 7) ^ (r & 7)) << 4);
    store_matrices(to + offset, v[0], v[1], v[2], v[3]);
  }
}

// A warpgroup's 64 rows of a tile of N columns.
template <int N>
__device__ __forceinline__ void compute_tile(Ring& ring, const TensorMap& out_map, const float* factors, u32 staging, int row, int column, int steps, int M, int gelu) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7;
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
    store_box_2d(out_map, staging, column / 2, row + group * 64);
    if (N == COLUMNS) store_box_2d(out_map, staging + BOX_BYTES, column / 2 + 64, row + group * 64);
    stores_commit();
  }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gated(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap w_part_map, const __grid_constant__ TensorMap out_map,
          const __grid_constant__ TensorMap out_part_map, const float* factors, int M, int N, int K, Items items, int gelu) {
  extern __shared__ unsigned char raw[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  Ring ring;
  begin_ring(ring, raw, barriers);
  const int warp = threadIdx.x >> 5, group = threadIdx.x >> 7;
  const int rank = rank_in_cluster();
  let_next_start();
  cluster_sync();
  wait_for_previous();
  const Places places(items, M, N);
  const int steps = (K + DEPTH - 1) / DEPTH, pair = blockIdx.x / 2, here = gridDim.x / 2;
  int row, column;
  if (group == 2) {
    give_registers<40>();
    if (warp == 8) {
      int item = pair;
      for (; item < places.undivided; item += here) {
        places.place(item, rank, row, column);
        copy_tile<COLUMNS>(ring, x_map, w_map, row, column, rank, steps);
      }
      if (item < items.count) {
        places.place(item, rank, row, column);
        if (items.parts == 2) copy_tile<COLUMNS / 2>(ring, x_map, w_part_map, row, column, rank, steps);
        else copy_tile<COLUMNS / 4>(ring, x_map, w_part_map, row, column, rank, steps);
      }
    }
  } else {
    take_registers<232>();
    const u32 staging = ring.data + STAGES * STAGE_BYTES + group * 2 * BOX_BYTES;
    int item = pair;
    for (; item < places.undivided; item += here) {
      places.place(item, rank, row, column);
      compute_tile<COLUMNS>(ring, out_map, factors, staging, row, column, steps, M, gelu);
    }
    if (item < items.count) {
      places.place(item, rank, row, column);
      if (items.parts == 2) compute_tile<COLUMNS / 2>(ring, out_map, factors, staging, row, column, steps, M, gelu);
      else compute_tile<COLUMNS / 4>(ring, out_part_map, factors, staging, row, column, steps, M, gelu);
    }
    if (threadIdx.x % 128 == 0) stores_done();
  }
  // Neither block of a pair leaves while the other may still signal it.
  cluster_sync();
}
