// Products of a few rows with a weight matrix: y[M, N] = x[M, K] . W[N, K]^T for M up to 16, with what stands before and after fused.
//
// Must move N * K * 2 bytes of weights once; everything else is small. One block per multiprocessor stays for all its tiles. A producer
// warp streams tiles of 16 rows x 512 columns by bulk copies into a ring in shared memory, and starts before the previous kernel is
// done, since weights do not depend on it; eight consumer warps split each tile's columns and multiply on the tensor cores. x is
// copied to shared memory once. A norm is a factor per row of the result, since its weights are folded into W's columns; the
// squares are summed beside the first tile. (A tied head cannot fold them: then x is normalised on its way in.)
#include "hopper.cuh"

#define TILE_ROWS 16
#define TILE_COLUMNS 512
#define CONSUMERS 256
#define ROW_BYTES (TILE_COLUMNS * 2 + 64)  // 64 more than a multiple of 128: 16-byte reads of neighbouring rows meet no bank twice
#define STAGE_BYTES (TILE_ROWS * ROW_BYTES)
#define MAX_STAGES 12

struct Gemv {
  const Element* weights;       // [N, K]
  const Element* x;             // [*, K]
  const int* x_rows;         // null, or which rows of x
  const float* norm_weight;  // not null: rmsnorm(x) * norm_weight instead of x
  const float* bias;         // null, or [N]
  void* out;                 // bf16 [M, N] | bf16 residual [M, N] | bf16 [M, N / 2] | f32 [M, N]
  float epsilon;
  float softcap;             // of logits; 0 is none
  int M, N, K, stages, mode, gelu;
  int normalise;             // rmsnorm(x) instead of x, its weights being in W
};

__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// rmsnorm(x) * norm_weight to shared memory.
template <int NT>
__device__ __forceinline__ void load_normalised(const Gemv& a, unsigned char* xs, int x_stride, float (*partial)[NT * 8]) {
  const int chunks = a.K / 8;
  float squares[NT * 8] = {};
#pragma unroll
  for (int m = 0; m < NT * 8; m++) {
    if (m >= a.M) break;
    const uint4* from = reinterpret_cast<const uint4*>(a.x + (u64)(a.x_rows ? a.x_rows[m] : m) * a.K);
    uint4* to = reinterpret_cast<uint4*>(xs + m * x_stride);
    for (int i = threadIdx.x; i < chunks; i += CONSUMERS) {
      const uint4 v = from[i];
      to[i] = v;
      const u32* pairs = reinterpret_cast<const u32*>(&v);
#pragma unroll
      for (int j = 0; j < 4; j++) { const float2 f = unpack_pair(pairs[j]); squares[m] += f.x * f.x + f.y * f.y; }
    }
  }
  {
#pragma unroll
    for (int m = 0; m < NT * 8; m++) {
      if (m >= a.M) break;
      const float s = warp_sum(squares[m]);
      if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5][m] = s;
    }
    consumers_sync();
#pragma unroll
    for (int m = 0; m < NT * 8; m++) {
      if (m >= a.M) break;
      float s = 0.f;
#pragma unroll
      for (int w = 0; w < 8; w++) s += partial[w][m];
      const float scale = rsqrtf(s / a.K + a.epsilon);
      uint4* row = reinterpret_cast<uint4*>(xs + m * x_stride);
      for (int i = threadIdx.x; i < chunks; i += CONSUMERS) {  // the chunks this thread stored itself
        const float4* w = reinterpret_cast<const float4*>(a.norm_weight) + i * 2;
        const float4 w0 = w[0], w1 = w[1];
        uint4 v = row[i];
        float2 f;
        f = unpack_pair(v.x); v.x = pack_pair(f.x * scale * w0.x, f.y * scale * w0.y);
        f = unpack_pair(v.y); v.y = pack_pair(f.x * scale * w0.z, f.y * scale * w0.w);
        f = unpack_pair(v.z); v.z = pack_pair(f.x * scale * w1.x, f.y * scale * w1.y);
        f = unpack_pair(v.w); v.w = pack_pair(f.x * scale * w1.z, f.y * scale * w1.w);
        row[i] = v;
      }
    }
  }
  consumers_sync();
}

// The tile's products of one stage: 64 columns a warp, 32 at a time. `x_of(unit, n)` gives a lane's eight elements of row n * 8 + g.
template <int NT, typename X>
__device__ __forceinline__ void multiply_stage(const Gemv& a, const unsigned char* base, int b, int warp, int q, bool sum_squares, float (&acc)[NT][4], float (&squares)[NT], X x_of) {
#pragma unroll
  for (int u = 0; u < 2; u++) {
    const int in_block = warp * 64 + u * 32, column = b * TILE_COLUMNS + in_block;
    if (column >= a.K) break;
    // Within 32 columns the k index is permuted alike for W and x, so that a lane's fragments are 8 neighbours. Columns past K
    // hold what an earlier tile left: both factors are set to zero.
    const bool inside = column + q * 8 < a.K;
    uint4 w0 = make_uint4(0, 0, 0, 0), w1 = w0;
    if (inside) {
      w0 = *reinterpret_cast<const uint4*>(base + (in_block + q * 8) * 2);
      w1 = *reinterpret_cast<const uint4*>(base + 8 * ROW_BYTES + (in_block + q * 8) * 2);
    }
    const u32 a0[4] = {w0.x, w1.x, w0.y, w1.y}, a1[4] = {w0.z, w1.z, w0.w, w1.w};
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const uint4 v = x_of(u, n, column, inside);
      if (sum_squares) {
        const float2 f0 = unpack_pair(v.x), f1 = unpack_pair(v.y), f2 = unpack_pair(v.z), f3 = unpack_pair(v.w);
        squares[n] += f0.x * f0.x + f0.y * f0.y + f1.x * f1.x + f1.y * f1.y + f2.x * f2.x + f2.y * f2.y + f3.x * f3.x + f3.y * f3.y;
      }
      __syncwarp();
      mma_16x8x16(acc[n], a0, v.x, v.y);
      mma_16x8x16(acc[n], a1, v.z, v.w);
    }
  }
}

// DIRECT: for one tile a block and at most DIRECT_BLOCKS blocks of columns, each lane reads its part of x straight into registers.
#define DIRECT_BLOCKS 3
template <int NT, bool DIRECT>
__device__ __forceinline__ void gemv_body(const Gemv& a) {
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ __align__(8) u64 barriers[2 * MAX_STAGES + 1];
  __shared__ float partial[8][TILE_ROWS][NT * 8 + 1];
  __shared__ float row_squares[8][NT * 8];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int tiles = (a.N + TILE_ROWS - 1) / TILE_ROWS, column_blocks = (a.K + TILE_COLUMNS - 1) / TILE_COLUMNS;
  const u32 ring_at = (u32)__cvta_generic_to_shared(ring);
  const u32 full = (u32)__cvta_generic_to_shared(barriers), empty = full + 8 * MAX_STAGES, x_full = full + 16 * MAX_STAGES;
  // x stands after the ring; its row stride is 64 more than a multiple of 128 bytes.
  unsigned char* xs = ring + a.stages * STAGE_BYTES;
  const int x_stride = (a.K * 2 + 127) / 128 * 128 + 64;
  let_next_start();
  if (threadIdx.x == 0) {
    for (int i = 0; i < a.stages; i++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full + 8 * i));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 8;" ::"r"(empty + 8 * i));
    }
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(x_full));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  int stage = 0;
  u32 phase = 0;
  if (warp == 8) {
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
      const int rows = min(TILE_ROWS, a.N - t * TILE_ROWS);
      for (int b = 0; b < column_blocks; b++) {
        const u32 bytes = min(TILE_COLUMNS, a.K - b * TILE_COLUMNS) * 2;
        barrier_wait(empty + 8 * stage, phase ^ 1);
        if (lane == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full + 8 * stage), "r"(bytes * rows) : "memory");
        __syncwarp();
        if (lane < rows)
          asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(ring_at + stage * STAGE_BYTES + lane * ROW_BYTES),
                       "l"(a.weights + (u64)(t * TILE_ROWS + lane) * a.K + b * TILE_COLUMNS), "r"(bytes), "r"(full + 8 * stage)
                       : "memory");
        if (++stage == a.stages) { stage = 0; phase ^= 1; }
      }
    }
    return;
  }
  wait_for_previous();
  uint4 own[DIRECT ? DIRECT_BLOCKS : 1][2][NT];
  if (DIRECT) {
#pragma unroll
    for (int b = 0; b < DIRECT_BLOCKS; b++)
#pragma unroll
      for (int u = 0; u < 2; u++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
          const int column = b * TILE_COLUMNS + warp * 64 + u * 32 + q * 8, m = n * 8 + g;
          own[DIRECT ? b : 0][u][n] = column < a.K && m < a.M ? *reinterpret_cast<const uint4*>(a.x + (u64)m * a.K + column) : make_uint4(0, 0, 0, 0);
        }
  } else if (a.norm_weight) {
    load_normalised<NT>(a, xs, x_stride, row_squares);
  } else {
    if (warp == 0) {
      if (lane == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(x_full), "r"(a.M * a.K * 2) : "memory");
      __syncwarp();
      if (lane < a.M)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"((u32)__cvta_generic_to_shared(xs) + lane * x_stride),
                     "l"(a.x + (u64)(a.x_rows ? a.x_rows[lane] : lane) * a.K), "r"(a.K * 2), "r"(x_full)
                     : "memory");
      __syncwarp();
    }
    barrier_wait(x_full, 0);
  }
  bool sum_squares = a.normalise;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x) {
    float acc[NT][4] = {}, squares[NT] = {};
    if (DIRECT) {
#pragma unroll
      for (int b = 0; b < DIRECT_BLOCKS; b++) {
        if (b >= column_blocks) break;
        barrier_wait(full + 8 * b, 0);
        multiply_stage<NT>(a, ring + b * STAGE_BYTES + g * ROW_BYTES, b, warp, q, sum_squares, acc, squares, [&](int u, int n, int, bool) { return own[DIRECT ? b : 0][u][n]; });
      }
    }
    for (int b = DIRECT ? column_blocks : 0; b < column_blocks; b++) {
      barrier_wait(full + 8 * stage, phase);
      const unsigned char* base = ring + stage * STAGE_BYTES + g * ROW_BYTES;
      multiply_stage<NT>(a, base, b, warp, q, sum_squares, acc, squares, [&](int, int n, int column, bool inside) {
        return inside && n * 8 + g < a.M ? *reinterpret_cast<const uint4*>(xs + (n * 8 + g) * x_stride + (column + q * 8) * 2) : make_uint4(0, 0, 0, 0);
      });
      __syncwarp();
      if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + 8 * stage) : "memory");
      if (++stage == a.stages) { stage = 0; phase ^= 1; }
    }
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) partial[warp][g + (e >> 1) * 8][n * 8 + q * 2 + (e & 1)] = acc[n][e];
    if (sum_squares) {
#pragma unroll
      for (int n = 0; n < NT; n++) {
        squares[n] += __shfl_xor_sync(~0u, squares[n], 1);
        squares[n] += __shfl_xor_sync(~0u, squares[n], 2);
        if (q == 0) row_squares[warp][n * 8 + g] = squares[n];
      }
      sum_squares = false;
    }
    __syncwarp();
    consumers_sync();
    for (int i = threadIdx.x; i < TILE_ROWS * NT * 8; i += CONSUMERS) {
      const int r = i % TILE_ROWS, m = i / TILE_ROWS, n = t * TILE_ROWS + r;
      if (m >= a.M || n >= a.N) continue;
      float sum = 0.f;
#pragma unroll
      for (int k = 0; k < 8; k++) sum += partial[k][r][m];
      float scale = 1.f;
      if (a.normalise) {
        float total = 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++) total += row_squares[k][m];
        scale = rsqrtf(total / a.K + a.epsilon);
        sum *= scale;
      }
      if (a.bias) sum += a.bias[n];
      if (a.mode == OUT_STORE) {
        reinterpret_cast<Element*>(a.out)[(u64)m * a.N + n] = to_element(sum);
      } else if (a.mode == OUT_RESIDUAL) {
        Element* to = reinterpret_cast<Element*>(a.out) + (u64)m * a.N + n;
        *to = to_element(to_float(*to) + sum);
      } else if (a.mode == OUT_GATED) {
        if (r < 8) {
          float up = 0.f;
#pragma unroll
          for (int k = 0; k < 8; k++) up += partial[k][r + 8][m];
          reinterpret_cast<Element*>(a.out)[(u64)m * (a.N / 2) + t * 8 + r] = to_element(activate(sum, a.gelu) * up * scale);
        }
      } else {
        if (a.softcap > 0.f) sum = a.softcap * tanhf(sum / a.softcap);
        reinterpret_cast<float*>(a.out)[(u64)m * a.N + n] = sum;
      }
    }
    consumers_sync();
  }
}
extern "C" __global__ void __launch_bounds__(288, 1) gemv_8(const __grid_constant__ Gemv a) { gemv_body<1, false>(a); }
extern "C" __global__ void __launch_bounds__(288, 1) gemv_16(const __grid_constant__ Gemv a) { gemv_body<2, false>(a); }
// One tile a block, K up to 3 * 512, one stage for each block of columns, x in order, no norm weights.
extern "C" __global__ void __launch_bounds__(288, 1) gemv_8_direct(const __grid_constant__ Gemv a) { gemv_body<1, true>(a); }
