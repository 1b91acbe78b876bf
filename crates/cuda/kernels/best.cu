// The highest logit of each row and its token: best[m] = max over n of (softcap(x[m] . W[n]), n), without writing logits.
//
// Must move N K * 2 bytes of weights once; 2 M N K operations: bound by memory up to some 256 rows. With logits between, M N * 4 bytes are written and
// read again: 0.13 of the 0.29 ms that 240 rows of a vocabulary of 152k take.
//
// Tiles of pairs.cuh, the rows of the weights being tokens. Blocks and warpgroups without rows of x copy and wait for the other's sake. Up to 128 rows
// even.cu is faster.
#include "pairs.cuh"
#include "best.cuh"

// A warpgroup's 64 rows of a tile of N tokens.
template <int N>
__device__ __forceinline__ void best_of_tile(Ring& ring, u64* best, int row, int column, int steps, int M, int tokens, float softcap) {
  if (row + (threadIdx.x >> 7) * 64 >= M) return pass_tile(ring, steps);
  float d[N / 2];
  multiply_tile<N>(ring, d, steps);
  join_best<N>(d, best, row + (threadIdx.x >> 5) * 16, column, M, tokens, softcap);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    best(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap w_part_map, u64* best, int M, int N, int K, Items items, float softcap) {
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
        copy_tile<COLUMNS>(ring, x_map, w_map, row, column, rank, steps, row < M);
      }
      if (item < items.count) {
        places.place(item, rank, row, column);
        if (items.parts == 2) copy_tile<COLUMNS / 2>(ring, x_map, w_part_map, row, column, rank, steps, row < M);
        else copy_tile<COLUMNS / 4>(ring, x_map, w_part_map, row, column, rank, steps, row < M);
      }
    }
  } else {
    take_registers<232>();
    int item = pair;
    for (; item < places.undivided; item += here) {
      places.place(item, rank, row, column);
      best_of_tile<COLUMNS>(ring, best, row, column, steps, M, N, softcap);
    }
    if (item < items.count) {
      places.place(item, rank, row, column);
      if (items.parts == 2) best_of_tile<COLUMNS / 2>(ring, best, row, column, steps, M, N, softcap);
      else best_of_tile<COLUMNS / 4>(ring, best, row, column, steps, M, N, softcap);
    }
  }
  // Neither block of a pair leaves while the other may still signal it.
  cluster_sync();
}
