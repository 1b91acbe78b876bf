// Gate and up for many rows with the activation fused: out[M, N / 2] = activation(f x . Wg^T) * (f x . Wu^T), f the factor of a row's norm, or 1.
//
// 2 M N K operations; must move (M K + N K + M N / 2) * 2 bytes: bound by the tensor cores from M of about 300. Without the fusion the
// product's M N * 2 bytes would be written and read again: 0.12 ms of the 1.4 ms that 4096 rows of an 8B model take.
//
// Block = 128 rows x 256 columns (128 gates, 128 ups, alternating by eight: src/weights.rs), in pairs (clusters) that share the columns: each
// loads half of the weights' tile and the copy engine gives it to both. One warp copies through a ring of four stages of 64 columns of
// K; two warpgroups multiply 64 rows each, apply the activation in registers and hand the tile to the copy engine. Blocks stay for all
// their tiles, whose order keeps the tiles that run at the same time in a square of rows and columns, for the cache.
#include "hopper.cuh"

#define ROWS 128
#define COLUMNS 256
#define DEPTH 64
#define STAGES 4
#define X_BYTES (ROWS * DEPTH * 2)
#define W_BYTES (COLUMNS * DEPTH * 2)
#define STAGE_BYTES (X_BYTES + W_BYTES)
#define BOX_BYTES (64 * 64 * 2)    // 64 rows x 64 columns of the result
#define GROUP 8                    // pairs of row tiles that run side by side

// activation(factor gate) * factor up of a warpgroup's 64 x 256 products, to the 64 x 128 elements at `to`, swizzled as the copy engine takes
// them. `factor`: of the lane's two rows.
template <bool GELU>
__device__ __forceinline__ void stage_result(const float (&d)[128], const float (&factor)[2], u32 to) {
  const int lane = threadIdx.x & 31, r = lane & 15, row = (threadIdx.x >> 5 & 3) * 16 + r;
#pragma unroll
  for (int p = 0; p < 16; p += 2) {  // two groups of eight result columns
    u32 v[4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float *gate = &d[(p + i) * 8 + 2 * e], *up = gate + 4;
        v[2 * i + e] = pack_pair(activate(gate[0] * factor[e], GELU) * (up[0] * factor[e]), activate(gate[1] * factor[e], GELU) * (up[1] * factor[e]));
      }
    const int chunk = p + (lane >> 4);
    store_matrices(to + chunk / 8 * BOX_BYTES + row * 128 + (((chunk & 7) ^ (r & 7)) << 4), v[0], v[1], v[2], v[3]);
  }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    gated(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap out_map, const float* factors, int M, int N, int K, int gelu) {
  extern __shared__ unsigned char raw[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  const u32 ring = (shared_address(raw) + 1023) & ~1023u, staging = ring + STAGES * STAGE_BYTES;
  const u32 full = shared_address(barriers), empty = full + 8 * STAGES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7;
  const u32 rank = rank_in_cluster();
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 16);  // eight warps here, eight in the other block
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  let_next_start();
  cluster_sync();
  wait_for_previous();
  const int row_pairs = (M + 2 * ROWS - 1) / (2 * ROWS), column_tiles = (N + COLUMNS - 1) / COLUMNS, steps = (K + DEPTH - 1) / DEPTH;
  const int tiles = row_pairs * column_tiles, clusters = gridDim.x / 2;
  // Tile t: groups of GROUP row pairs; within one, row pairs run fastest.
  auto place = [&](int t, int& row, int& column) {
    const int per_group = GROUP * column_tiles, first = t / per_group * GROUP, height = min(GROUP, row_pairs - first), in_group = t % per_group;
    row = ((first + in_group % height) * 2 + rank) * ROWS;
    column = in_group / height * COLUMNS;
  };
  int stage = 0;
  u32 phase = 0;
  auto next_stage = [&] {
    if (++stage == STAGES) { stage = 0; phase ^= 1; }
  };
  if (group == 2) {
    give_registers<40>();
    if (warp == 8) {
      for (int t = blockIdx.x / 2; t < tiles; t += clusters) {
        int row, column;
        place(t, row, column);
        for (int k = 0; k < steps; k++) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          if (lane == 0) {
            const u32 at = ring + stage * STAGE_BYTES, half = rank * (W_BYTES / 2);
            barrier_expect(full + 8 * stage, STAGE_BYTES);
            load_box_2d(x_map, at, full + 8 * stage, k * DEPTH, row);
            load_box_2d_to_all(w_map, at + X_BYTES + half, full + 8 * stage, k * DEPTH, column + rank * (COLUMNS / 2), 3);
          }
          __syncwarp();
          next_stage();
        }
      }
    }
  } else {
    take_registers<232>();
    const u32 mine = staging + group * 2 * BOX_BYTES;
    for (int t = blockIdx.x / 2; t < tiles; t += clusters) {
      int row, column;
      place(t, row, column);
      float d[128], factor[2] = {1.f, 1.f};
      if (factors) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int at = row + group * 64 + (warp & 3) * 16 + (lane >> 2) + 8 * e;
          if (at < M) factor[e] = factors[at];
        }
      }
      int behind = -1;  // the stage whose products may still run
      for (int k = 0; k < steps; k++) {
        barrier_wait(full + 8 * stage, phase);
        const u32 at = ring + stage * STAGE_BYTES;
        const u64 x = operand_along_k(at + group * (X_BYTES / 2)), w = operand_along_k(at + X_BYTES);
        products_begin();
#pragma unroll
        for (int i = 0; i < DEPTH / 16; i++) multiply_256(d, x + 2 * i, w + 2 * i, k > 0 || i > 0);
        products_commit();
        // The stage before this one is free when its products are done: these stay in flight.
        products_wait<1>();
        if (behind >= 0 && lane < 2) barrier_arrive_at(empty + 8 * behind, lane);
        behind = stage;
        next_stage();
      }
      products_wait<0>();
      pin(d);
      if (lane < 2) barrier_arrive_at(empty + 8 * behind, lane);
      // The staging area is free when the last tile's stores have read it.
      if (threadIdx.x % 128 == 0) stores_read();
      named_sync(1 + group, 128);
      if (gelu) stage_result<true>(d, factor, mine);
      else stage_result<false>(d, factor, mine);
      shared_writes_to_async();
      named_sync(1 + group, 128);
      if (threadIdx.x % 128 == 0) {
        store_box_2d(out_map, mine, column / 2, row + group * 64);
        store_box_2d(out_map, mine + BOX_BYTES, column / 2 + 64, row + group * 64);
        stores_commit();
      }
    }
    if (threadIdx.x % 128 == 0) stores_done();
  }
  // Neither block of a pair leaves while the other may still signal it.
  cluster_sync();
}
