// The highest logit of each row and its token: best[m] = max over n of (softcap(x[m] . W[n]), n), without writing logits.
//
// Must move N K * 2 bytes of weights once; 2 M N K operations: bound by memory up to some 256 rows. With logits between, M N * 4 bytes are written and
// read again: 0.13 of the 0.29 ms that 240 rows of a vocabulary of 152k take.
//
// Tiles of pairs.cuh, the rows of the weights being tokens. Blocks and warpgroups without rows of x copy and wait for the other's sake. Up to 128 rows
// even.cu is faster.
#include "pairs.cuh"
#include "best.cuh"

struct Best {
  u64* best;
  int M, tokens;
  float softcap;
  __device__ __forceinline__ bool wants(int row) const { return row < M; }
  template <int N>
  __device__ __forceinline__ void make(Ring& ring, int row, int column, int steps) const {
    if (row + (threadIdx.x >> 7) * 64 >= M) return pass_tile(ring, steps);
    float d[N / 2];
    multiply_tile<N>(ring, d, steps);
    join_best<N>(d, best, row + (threadIdx.x >> 5) * 16, column, M, tokens, softcap);
  }
  __device__ __forceinline__ void begin(const Ring&, int) {}
  __device__ __forceinline__ void end() const {}
};

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
    best(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap w_part_map, u64* best, int M, int N, int K, Items items, float softcap) {
  make_tiles<COLUMNS>(x_map, w_map, w_part_map, items, M, N, K, Best{best, M, N, softcap});
}
