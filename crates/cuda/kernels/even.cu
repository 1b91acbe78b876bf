// Products of up to 128 rows in tiles of which every multiprocessor has as many: gate and up with the activation (tried from 33 rows on), and the highest
// logits of a head.
//
//   gated: out[M, N / 2] = activation(f x . Wg^T) * (f x . Wu^T), f the factor of a row's norm, or 1
//   best:  best[m] = max over n of (softcap(x[m] . W[n]), n)
//
// Must move N K * 2 bytes of weights once. A tile is all rows of x by TILE rows of weights, the operand across: of TILE 144 and 224 the host takes the one
// with which a multiprocessor has the fewest rows at most, so that each of them reads about as much. One block a multiprocessor with
// as deep a ring of 64 columns of K as fits. One warp copies, two warpgroups multiply 64 rows of x each and finish in registers. Weights that fill the
// ring are asked for before the previous kernel is done. (Squares for the norm's factors, summed by three more warps from the ring: 6 us of 32.)
#include "best.cuh"
#include "hopper.cuh"

#define ROWS 128
#define DEPTH 64
#define X_BYTES (ROWS * DEPTH * 2)
#define CONSUMERS 256

struct Even {
  void* out;             // elements [M, N / 2], or u64 [M] (best.cuh)
  const float* factors;  // of the norm of each row, whose weights are in W; null is 1
  float softcap;         // of logits; 0 is none
  int M, N, K, gelu;
};

__device__ __forceinline__ void multiply_tile(float (&d)[72], u64 x, u64 w, bool begin) { multiply_144(d, x, w, !begin); }
__device__ __forceinline__ void multiply_tile(float (&d)[112], u64 x, u64 w, bool begin) { multiply_224(d, x, w, !begin); }

template <int TILE>
struct Ring : RingOf<X_BYTES + TILE * DEPTH * 2, TILE <= 144 ? 6 : 5> {
  __device__ __forceinline__ void release(int which) const {
    if ((threadIdx.x & 31) == 0) barrier_arrive(this->empty + 8 * which);
  }
};

// The stages of a block, tile after tile.
template <int TILE>
struct Stages {
  int steps, tile, k = 0;
  __device__ __forceinline__ void next() {
    if (++k == steps) { k = 0; tile += gridDim.x; }
  }
};

template <int TILE>
__device__ __forceinline__ void copy_tiles(Ring<TILE>& ring, const TensorMap& x_map, const TensorMap& w_map, const Even& a, int steps, int count) {
  constexpr int STAGES = Ring<TILE>::STAGES;
  const int ahead = min(STAGES, count);
  Stages<TILE> weights{steps, (int)blockIdx.x}, x{steps, (int)blockIdx.x};
  auto load_weights = [&](int to) {
    barrier_expect(ring.full + 8 * to, TILE * DEPTH * 2 + a.M * DEPTH * 2);
    load_box_2d(w_map, ring.data + to * Ring<TILE>::STAGE_BYTES + X_BYTES, ring.full + 8 * to, weights.k * DEPTH, weights.tile * TILE);
    weights.next();
  };
  auto load_x = [&](int to) {
    load_box_2d(x_map, ring.data + to * Ring<TILE>::STAGE_BYTES, ring.full + 8 * to, x.k * DEPTH, 0);
    x.next();
  };
  if ((threadIdx.x & 31) == 0) {
    for (int i = 0; i < ahead; i++) load_weights(i);
    wait_for_previous();
    for (int i = 0; i < ahead; i++) load_x(i);
  }
  __syncwarp();
  for (int i = ahead; i < count; i++) {
    barrier_wait(ring.empty + 8 * ring.stage, ring.phase);
    if ((threadIdx.x & 31) == 0) {
      load_weights(ring.stage);
      load_x(ring.stage);
    }
    __syncwarp();
    ring.next();
  }
  let_next_start();
}

// activation(factor gate) * factor up of a warp's 16 rows of a tile. Four lanes of a row exchange what they have of four groups of eight columns, so that
// each writes one group at once.
template <int TILE, bool GELU>
__device__ __forceinline__ void write_gated(const float (&d)[TILE / 2], const Even& a, int row, int column) {
  constexpr int GROUPS = TILE / 16;
  const int lane = threadIdx.x & 31, q = lane & 3, width = a.N / 2;
  Element* out = reinterpret_cast<Element*>(a.out);
#pragma unroll
  for (int e = 0; e < 2; e++) {
    const int m = row + (lane >> 2) + 8 * e;
    const bool inside = m < a.M;
    const float f = a.factors && inside ? a.factors[m] : 1.f;
    Element* to = out + (u64)m * width + column / 2;
    auto pair = [&](int p) {
      const float *gate = &d[p * 8 + 2 * e], *up = gate + 4;
      return pack_pair(activate(gate[0] * f, GELU) * (up[0] * f), activate(gate[1] * f, GELU) * (up[1] * f));
    };
#pragma unroll
    for (int p = 0; p + 4 <= GROUPS; p += 4) {
      u32 v[4] = {pair(p), pair(p + 1), pair(p + 2), pair(p + 3)};
      // A transpose of four by four: lane q has its pair of each group, and gets all pairs of group q.
      u32 other[2] = {__shfl_xor_sync(~0u, q & 2 ? v[0] : v[2], 2), __shfl_xor_sync(~0u, q & 2 ? v[1] : v[3], 2)};
      if (q & 2) { v[0] = other[0]; v[1] = other[1]; } else { v[2] = other[0]; v[3] = other[1]; }
      other[0] = __shfl_xor_sync(~0u, q & 1 ? v[0] : v[1], 1);
      other[1] = __shfl_xor_sync(~0u, q & 1 ? v[2] : v[3], 1);
      if (q & 1) { v[0] = other[0]; v[2] = other[1]; } else { v[1] = other[0]; v[3] = other[1]; }
      const int n = 8 * (p + q);
      if (inside && column / 2 + n < width) *reinterpret_cast<uint4*>(to + n) = make_uint4(v[0], v[1], v[2], v[3]);
    }
#pragma unroll
    for (int p = GROUPS / 4 * 4; p < GROUPS; p++) {
      const u32 v = pair(p);
      const int n = 8 * p + 2 * q;
      if (inside && column / 2 + n < width) *reinterpret_cast<u32*>(to + n) = v;
    }
  }
}

template <int TILE, bool GATED>
__device__ __forceinline__ void compute_tiles(Ring<TILE>& ring, const Even& a, int steps, int tiles) {
  const int warp = threadIdx.x >> 5, group = warp >> 2;
  const bool mine = group * 64 < a.M;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    if (!mine) {
      for (int k = 0; k < steps; k++) {
        ring.wait_full();
        ring.release(ring.stage);
        ring.next();
      }
      continue;
    }
    float d[TILE / 2];
    int behind = -1;  // the stage whose products may still run
    for (int k = 0; k < steps; k++) {
      ring.wait_full();
      const u64 x = operand_along_k(ring.at() + group * (X_BYTES / 2)), w = operand_along_k(ring.at() + X_BYTES);
      products_begin();
#pragma unroll
      for (int i = 0; i < DEPTH / 16; i++) multiply_tile(d, x + 2 * i, w + 2 * i, k == 0 && i == 0);
      products_commit();
      products_wait<1>();
      if (behind >= 0) ring.release(behind);
      behind = ring.stage;
      ring.next();
    }
    products_wait<0>();
    pin(d);
    ring.release(behind);
    wait_for_previous();
    if (!GATED) join_best<TILE>(d, reinterpret_cast<u64*>(a.out), warp * 16, tile * TILE, a.M, a.N, a.softcap);
    else if (a.gelu) write_gated<TILE, true>(d, a, warp * 16, tile * TILE);
    else write_gated<TILE, false>(d, a, warp * 16, tile * TILE);
  }
}

template <int TILE, bool GATED>
__device__ __forceinline__ void even_body(const TensorMap& x_map, const TensorMap& w_map, const Even& a) {
  extern __shared__ unsigned char raw[];
  __shared__ __align__(8) u64 barriers[2 * Ring<TILE>::STAGES];
  Ring<TILE> ring;
  ring.begin(raw, barriers, CONSUMERS / 32);
  __syncthreads();
  const int steps = (a.K + DEPTH - 1) / DEPTH, tiles = (a.N + TILE - 1) / TILE, warp = threadIdx.x >> 5;
  const int count = (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x * steps;
  if (warp < CONSUMERS / 32) compute_tiles<TILE, GATED>(ring, a, steps, tiles);
  else copy_tiles(ring, x_map, w_map, a, steps, count);
}

#define EVEN(MADE, TILE, GATED)                                                                                                                     \
  extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1)                                                                                   \
      even_##MADE##_##TILE(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map, const __grid_constant__ Even a) {      \
    even_body<TILE, GATED>(x_map, w_map, a);                                                                                                        \
  }
EVEN(gated, 144, true)
EVEN(gated, 224, true)
EVEN(best, 144, false)
EVEN(best, 224, false)
