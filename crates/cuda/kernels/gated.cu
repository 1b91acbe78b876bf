// Gate and up for many rows with the activation fused: out[M, N / 2] = activation(f x . Wg^T) * (f x . Wu^T), f the factor of a row's norm, or 1.
//
// 2 M N K operations; must move (M K + N K + M N / 2) * 2 bytes: bound by the tensor cores from M of about 300. Without the fusion the
// product's M N * 2 bytes would be written and read again: 0.12 ms of the 1.4 ms that 4096 rows of an 8B model take.
//
// Block = 128 rows x 256 columns (128 gates, 128 ups, alternating by eight: src/weights.rs), in pairs (clusters) that share the columns: each
// loads half of the weights' tile and the copy engine gives it to both. One warp copies through a ring of four stages of 64 columns of
// K; two warpgroups multiply 64 rows each, apply the activation in registers and hand the tile to the copy engine. Blocks stay for all
// their tiles, whose order keeps the tiles that run at the same time in a square of rows and columns, for the cache. Tiles that would fill no
// more than half of the last round are divided by columns into two or four, so that more pairs have a part of them.
#include "hopper.cuh"

#define ROWS 128
#define COLUMNS 256
#define DEPTH 64
#define STAGES 4
#define X_BYTES (ROWS * DEPTH * 2)
#define STAGE_BYTES (X_BYTES + COLUMNS * DEPTH * 2)
#define BOX_BYTES (64 * 64 * 2)    // 64 rows x 64 columns of the result
#define PART_BOX 32                // rows of the weights' boxes of divided tiles
#define GROUP 8                    // pairs of row tiles that run side by side

// The ring: which stage is next, and the parity of its phase.
struct Ring {
  u32 data, full, empty;
  int stage = 0;
  u32 phase = 0;
  __device__ __forceinline__ u32 at() const { return data + stage * STAGE_BYTES; }
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) { stage = 0; phase ^= 1; }
  }
};

// What the pairs of blocks compute (gated.rs): so many whole tiles, then the parts that the others are divided into.
struct Items {
  int whole, parts, count;
};

struct Places {
  Items items;
  int row_pairs, column_tiles, undivided;
  __device__ Places(const Items& items, int M, int N) : items(items), row_pairs((M + 2 * ROWS - 1) / (2 * ROWS)), column_tiles((N + COLUMNS - 1) / COLUMNS) {
    undivided = items.parts == 1 ? items.count : items.whole;
  }
  // First row and column of an item for the block of this rank. Tiles: groups of GROUP row pairs; within one, row pairs run fastest.
  __device__ void place(int item, int rank, int& row, int& column) const {
    const int more = item - items.whole, tile = more < 0 ? item : items.whole + more / items.parts, part = more < 0 ? 0 : more % items.parts;
    const int per_group = GROUP * column_tiles, first = tile / per_group * GROUP, height = min(GROUP, row_pairs - first), in_group = tile % per_group;
    row = ((first + in_group % height) * 2 + rank) * ROWS;
    column = in_group / height * COLUMNS + part * (COLUMNS / items.parts);
  }
};

// One lane copies the stages of a tile of N columns: rows of x for its own block, half of the weights' rows for both.
template <int N>
__device__ __forceinline__ void copy_tile(Ring& ring, const TensorMap& x_map, const TensorMap& w_map, int row, int column, int rank, int steps) {
  constexpr u32 half = N * DEPTH;  // bytes of N / 2 rows
  constexpr int BOX = N == COLUMNS ? N / 2 : PART_BOX;
  const int first = column + rank * (N / 2);
  for (int k = 0; k < steps; k++) {
    const u32 full = ring.full + 8 * ring.stage;
    barrier_wait(ring.empty + 8 * ring.stage, ring.phase ^ 1);
    if ((threadIdx.x & 31) == 0) {
      const u32 at = ring.at(), to = at + X_BYTES + rank * half;
      barrier_expect(full, X_BYTES + 2 * half);
      load_box_2d(x_map, at, full, k * DEPTH, row);
#pragma unroll
      for (int i = 0; i < N / 2; i += BOX) load_box_2d_to_all(w_map, to + i * DEPTH * 2, full, k * DEPTH, first + i, 3);
    }
    __syncwarp();
    ring.next();
  }
}

__device__ __forceinline__ void multiply_or_begin(float (&d)[128], u64 x, u64 w, bool begin) { multiply_256(d, x, w, !begin); }
__device__ __forceinline__ void multiply_or_begin(float (&d)[64], u64 x, u64 w, bool begin) { multiply_128(d, x, w, !begin); }
__device__ __forceinline__ void multiply_or_begin(float (&d)[32], u64 x, u64 w, bool) { multiply<64>(d, x, w); }  // zeros at the beginning

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
  if (N == 64) {
#pragma unroll
    for (int i = 0; i < N / 2; i++) d[i] = 0.f;
    pin(d);
  }
  int behind = -1;  // the stage whose products may still run
  for (int k = 0; k < steps; k++) {
    barrier_wait(ring.full + 8 * ring.stage, ring.phase);
    const u32 at = ring.at();
    const u64 x = operand_along_k(at + group * (X_BYTES / 2)), w = operand_along_k(at + X_BYTES);
    products_begin();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++) multiply_or_begin(d, x + 2 * i, w + 2 * i, k == 0 && i == 0);
    products_commit();
    // The stage before this one is free when its products are done: these stay in flight.
    products_wait<1>();
    if (behind >= 0 && lane < 2) barrier_arrive_at(ring.empty + 8 * behind, lane);
    behind = ring.stage;
    ring.next();
  }
  products_wait<0>();
  pin(d);
  if (lane < 2) barrier_arrive_at(ring.empty + 8 * behind, lane);
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
  ring.data = (shared_address(raw) + 1023) & ~1023u;
  ring.full = shared_address(barriers);
  ring.empty = ring.full + 8 * STAGES;
  const int warp = threadIdx.x >> 5, group = threadIdx.x >> 7;
  const int rank = rank_in_cluster();
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, 16);  // eight warps here, eight in the other block
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
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
