// Tiles of 128 rows of x by 256 rows of weights in pairs of blocks (clusters) that share the weights: each loads half of their tile and the copy
// engine gives it to both. One warp copies through a ring of four stages of 64 columns of K; two warpgroups multiply 64 rows of x each. Blocks stay
// for all their tiles, whose order keeps those that run at the same time in a square of rows and columns, for the cache. Tiles that would fill no more
// than half of the last round are divided by columns into two or four, so that more pairs have a part of them; or all are narrower, so that the last
// round is full (pairs.rs chooses).
#pragma once
#include "hopper.cuh"

#define ROWS 128
#define COLUMNS 256
#define DEPTH 64
#define STAGES 4
#define X_BYTES (ROWS * DEPTH * 2)
#define STAGE_BYTES (X_BYTES + COLUMNS * DEPTH * 2)
#define PART_BOX 32                // rows of the weights' boxes of divided tiles
#define GROUP 8                    // pairs of row tiles that run side by side

typedef RingOf<STAGE_BYTES, STAGES> Ring;

// What the pairs of blocks compute (pairs.rs): so many whole tiles, then the parts that the others are divided into.
struct Items {
  int whole, parts, count;
};

// WIDE: columns of a whole tile.
template <int WIDE>
struct Places {
  Items items;
  int row_pairs, column_tiles, undivided;
  __device__ Places(const Items& items, int M, int N) : items(items), row_pairs((M + 2 * ROWS - 1) / (2 * ROWS)), column_tiles((N + WIDE - 1) / WIDE) {
    undivided = items.parts == 1 ? items.count : items.whole;
  }
  // First row and column of an item for the block of this rank. Tiles: groups of GROUP row pairs; within one, row pairs run fastest.
  __device__ void place(int item, int rank, int& row, int& column) const {
    const int more = item - items.whole, tile = more < 0 ? item : items.whole + more / items.parts, part = more < 0 ? 0 : more % items.parts;
    const int per_group = GROUP * column_tiles, first = tile / per_group * GROUP, height = min(GROUP, row_pairs - first), in_group = tile % per_group;
    row = ((first + in_group % height) * 2 + rank) * ROWS;
    column = in_group / height * WIDE + part * (WIDE / items.parts);
  }
};

// One lane copies the stages of a tile of N columns: rows of x for its own block where it has any (`mine`), half of the weights' rows for both.
template <int N>
__device__ __forceinline__ void copy_tile(Ring& ring, const TensorMap& x_map, const TensorMap& w_map, int row, int column, int rank, int steps, bool mine) {
  constexpr u32 half = N * DEPTH;  // bytes of N / 2 rows
  constexpr int BOX = N > COLUMNS / 2 ? N / 2 : PART_BOX;
  const int first = column + rank * (N / 2);
  for (int k = 0; k < steps; k++) {
    const u32 full = ring.full + 8 * ring.stage;
    barrier_wait(ring.empty + 8 * ring.stage, ring.phase ^ 1);
    if ((threadIdx.x & 31) == 0) {
      const u32 at = ring.at(), to = at + X_BYTES + rank * half;
      barrier_expect(full, (mine ? X_BYTES : 0) + 2 * half);
      if (mine) load_box_2d(x_map, at, full, k * DEPTH, row);
#pragma unroll
      for (int i = 0; i < N / 2; i += BOX) load_box_2d_to_all(w_map, to + i * DEPTH * 2, full, k * DEPTH, first + i, 3);
    }
    __syncwarp();
    ring.next();
  }
}

__device__ __forceinline__ void multiply_or_begin(float (&d)[128], u64 x, u64 w, bool begin) { multiply_256(d, x, w, !begin); }
__device__ __forceinline__ void multiply_or_begin(float (&d)[112], u64 x, u64 w, bool begin) { multiply_224(d, x, w, !begin); }
__device__ __forceinline__ void multiply_or_begin(float (&d)[96], u64 x, u64 w, bool begin) { multiply_192(d, x, w, !begin); }
__device__ __forceinline__ void multiply_or_begin(float (&d)[64], u64 x, u64 w, bool begin) { multiply_128(d, x, w, !begin); }
__device__ __forceinline__ void multiply_or_begin(float (&d)[32], u64 x, u64 w, bool) { multiply<64>(d, x, w); }  // zeros at the beginning

// The stages of a tile, released by a warpgroup that has no rows of x in it.
__device__ __forceinline__ void pass_tile(Ring& ring, int steps) {
  const int lane = threadIdx.x & 31;
  for (int k = 0; k < steps; k++) {
    barrier_wait(ring.full + 8 * ring.stage, ring.phase);
    if (lane < 2) barrier_arrive_at(ring.empty + 8 * ring.stage, lane);
    ring.next();
  }
}

// A warpgroup's 64 x N products of a tile, the stages released when they were read.
template <int N>
__device__ __forceinline__ void multiply_tile(Ring& ring, float (&d)[N / 2], int steps) {
  const int lane = threadIdx.x & 31, group = threadIdx.x >> 7;
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
}

template <int N>
struct Columns {
  static constexpr int COUNT = N;
};

// A pair's items, one after another, by the warp that copies and by the warpgroups that compute. `maker` says what becomes of them:
//   bool wants(row)                        whether rows of x from this one on are to be copied
//   void make<N>(ring, row, column, steps) a warpgroup's 64 rows of a tile of N columns
//   void begin(ring, group), void end()    by each warpgroup, before its first tile and after its last
// Tiles narrower than COLUMNS are never divided.
template <int WIDE, class Maker>
__device__ __forceinline__ void make_tiles(const TensorMap& x_map, const TensorMap& w_map, const TensorMap& w_part_map, const Items& items, int M, int N, int K, Maker maker) {
  extern __shared__ unsigned char raw[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  Ring ring;
  ring.begin(raw, barriers, 16);  // eight warps here, eight in the other block
  const int warp = threadIdx.x >> 5, group = threadIdx.x >> 7;
  const int rank = rank_in_cluster();
  let_next_start();
  cluster_sync();
  wait_for_previous();
  const Places<WIDE> places(items, M, N);
  const int steps = (K + DEPTH - 1) / DEPTH, pair = blockIdx.x / 2, here = gridDim.x / 2;
  auto for_each = [&](auto each) {
    int item = pair, row, column;
    for (; item < places.undivided; item += here) {
      places.place(item, rank, row, column);
      each(Columns<WIDE>(), row, column);
    }
    if constexpr (WIDE == COLUMNS)
      if (item < items.count) {
        places.place(item, rank, row, column);
        if (items.parts == 2) each(Columns<COLUMNS / 2>(), row, column);
        else each(Columns<COLUMNS / 4>(), row, column);
      }
  };
  if (group == 2) {
    give_registers<40>();
    if (warp == 8)
      for_each([&](auto columns, int row, int column) {
        constexpr int COUNT = decltype(columns)::COUNT;
        copy_tile<COUNT>(ring, x_map, COUNT == WIDE ? w_map : w_part_map, row, column, rank, steps, maker.wants(row));
      });
  } else {
    take_registers<232>();
    maker.begin(ring, group);
    for_each([&](auto columns, int row, int column) { maker.template make<decltype(columns)::COUNT>(ring, row, column, steps); });
    maker.end();
  }
  // Neither block of a pair leaves while the other may still signal it.
  cluster_sync();
}
