// Products of up to 128 rows with a weight matrix: y[M, N] = x[M, K] . W[N, K]^T, with what stands before and after fused.
//
// Must move N * K * 2 bytes of weights once; at 128 rows the tensor cores need less than half of that time. The weights are the wide operand:
// 64 of their rows to a `wgmma`, the rows of x (rounded up to COLUMNS) across. A cluster of blocks shares one tile of weight rows: each
// sums a part of K and reads from the others' shared memory, in the order of their ranks, the partial sums of the rows of x that it
// finishes. So small matrices too are streamed by all multiprocessors, and equal inputs give equal bits.
//
// One warp copies through a ring in shared memory. It fills the ring with weights before the previous kernel is done, since weights do not
// depend on it, and then adds x. Half of a multiprocessor's shared memory is the most a block takes, and the next kernel may start when the
// last copy is under way: its blocks fill their rings while this one sums and writes, when memory would be idle. (Started
// earlier, they fill while memory is busy and wait when it is not: 2 % of a step.) A norm is a factor per row of x, since its weights are
// folded into W's columns; the squares are summed from the ring while the tensor cores multiply.
#include "hopper.cuh"

#define DEPTH 64
#define MAX_STAGES 12

struct Skinny {
  const float* bias;  // null, or [N]
  void* out;          // bf16 [M, N] | bf16 residual [M, N] | bf16 [M, N / 2] | f32 [M, N]
  float epsilon;
  float softcap;      // of logits; 0 is none
  int M, N, K, stages;
  int splits;         // blocks of a cluster
  int mode, gelu;
  int normalise;      // rmsnorm(x) instead of x, its weights being in W
};

// Where an address of this block's shared memory lies in another block of the cluster.
__device__ __forceinline__ u32 address_in(u32 at, u32 rank) {
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
// From another block's shared memory; zeros where not wanted. Whoever loads must use what it loads before it lets that block leave.
__device__ __forceinline__ float4 load_cluster(u32 at, bool wanted) {
  float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4]; }"
               : "+f"(v.x), "+f"(v.y), "+f"(v.z), "+f"(v.w)
               : "r"(at), "r"((u32)wanted)
               : "memory");
  return v;
}
__device__ __forceinline__ float4 load_own(u32 at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void store_four(Element* to, float4 v) { *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair(v.x, v.y), pack_pair(v.z, v.w)); }

// Sums of COUNT groups of four over the blocks of the cluster, rank after rank; all loads are in flight at once.
template <int SPLITS, int COUNT>
__device__ __forceinline__ void sum_parts(const u32 (&part)[SPLITS], const u32 (&offset)[COUNT], const bool (&wanted)[COUNT], float4 (&sum)[COUNT]) {
  float4 v[COUNT][SPLITS];
#pragma unroll
  for (int u = 0; u < COUNT; u++)
#pragma unroll
    for (int r = 0; r < SPLITS; r++) v[u][r] = SPLITS == 1 ? load_own(part[r] + offset[u]) : load_cluster(part[r] + offset[u], wanted[u]);
#pragma unroll
  for (int u = 0; u < COUNT; u++) {
    sum[u] = v[u][0];
#pragma unroll
    for (int r = 1; r < SPLITS; r++) {
      sum[u].x += v[u][r].x;
      sum[u].y += v[u][r].y;
      sum[u].z += v[u][r].z;
      sum[u].w += v[u][r].w;
    }
  }
}

// Finishes the rows of x from `begin` to `end`: four columns of the result at a time, or as many pairs of gate and up.
template <int GROUPS, int SPLITS, bool GATED>
__device__ __forceinline__ void finish(const Skinny& a, u32 sums, const float* factors, int tile, int begin, int end) {
  constexpr int ROWS = 64 * GROUPS, CONSUMERS = 128 * GROUPS, STRIDE = ROWS + 4;
  constexpr int GROUPS_OF_FOUR = ROWS / (GATED ? 8 : 4), AT_ONCE = SPLITS * (GATED ? 2 : 1) < 8 ? 8 / SPLITS / (GATED ? 2 : 1) : 1;
  u32 part[SPLITS];
#pragma unroll
  for (int r = 0; r < SPLITS; r++) part[r] = SPLITS == 1 ? sums : address_in(sums, r);
  const int count = (end - begin) * GROUPS_OF_FOUR, width = GATED ? a.N / 2 : a.N;
  struct Place {
    bool inside;
    int m, row, column;  // of x, of the tile, of the tile's part of the result
  };
  auto place = [&](int i) {
    const int c = i % GROUPS_OF_FOUR * 4, row = GATED ? c / 8 * 16 + c % 8 : c;
    return Place{i < count && tile * ROWS + row < a.N, i < count ? begin + i / GROUPS_OF_FOUR : begin, row, c};
  };
  auto element = [&](const Place& at) { return (u64)at.m * width + tile * (GATED ? ROWS / 2 : ROWS) + at.column; };
  Element* out = reinterpret_cast<Element*>(a.out);
  for (int first = threadIdx.x; first < count; first += AT_ONCE * CONSUMERS) {
    u32 gate_at[AT_ONCE], up_at[AT_ONCE];
    bool inside[AT_ONCE];
    uint2 old[AT_ONCE];
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const Place at = place(first + u * CONSUMERS);
      inside[u] = at.inside;
      gate_at[u] = (at.m * STRIDE + at.row) * 4;
      up_at[u] = gate_at[u] + 32;
      old[u] = make_uint2(0, 0);
      if (!GATED && a.mode == OUT_RESIDUAL && at.inside) old[u] = *reinterpret_cast<const uint2*>(out + element(at));
    }
    float4 gate[AT_ONCE], up[AT_ONCE];
    sum_parts<SPLITS, AT_ONCE>(part, gate_at, inside, gate);
    if (GATED) sum_parts<SPLITS, AT_ONCE>(part, up_at, inside, up);
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      const Place at = place(first + u * CONSUMERS);
      if (!inside[u]) continue;
      float4 v = gate[u];
      const float f = a.normalise ? factors[at.m] : 1.f;
      v.x *= f; v.y *= f; v.z *= f; v.w *= f;
      if (GATED) {
        v.x = activate(v.x, a.gelu) * (up[u].x * f);
        v.y = activate(v.y, a.gelu) * (up[u].y * f);
        v.z = activate(v.z, a.gelu) * (up[u].z * f);
        v.w = activate(v.w, a.gelu) * (up[u].w * f);
        store_four(out + element(at), v);
        continue;
      }
      if (a.bias) {
        const float4 b = *reinterpret_cast<const float4*>(a.bias + tile * ROWS + at.column);
        v.x += b.x; v.y += b.y; v.z += b.z; v.w += b.w;
      }
      if (a.mode == OUT_LOGITS) {
        if (a.softcap > 0.f) {
          v.x = a.softcap * tanhf(v.x / a.softcap);
          v.y = a.softcap * tanhf(v.y / a.softcap);
          v.z = a.softcap * tanhf(v.z / a.softcap);
          v.w = a.softcap * tanhf(v.w / a.softcap);
        }
        *reinterpret_cast<float4*>(reinterpret_cast<float*>(a.out) + element(at)) = v;
        continue;
      }
      const float2 lo = unpack_pair(old[u].x), hi = unpack_pair(old[u].y);
      v.x += lo.x; v.y += lo.y; v.z += hi.x; v.w += hi.y;
      store_four(out + element(at), v);
    }
  }
}

// This block's share of the cluster's rows of x.
template <int GROUPS, int SPLITS>
__device__ __forceinline__ void finish_share(const Skinny& a, u32 sums, float* squares, int rank, int tile) {
  const int each = (a.M + SPLITS - 1) / SPLITS, begin = rank * each, end = min(a.M, begin + each);
  if (a.normalise) {
    // Sums of squares become factors; those of other rows stay for other blocks to read.
    float total = 0.f;
    const int m = begin + threadIdx.x;
    if (m < end) {
#pragma unroll
      for (int r = 0; r < SPLITS; r++) {
        float part;
        asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(part) : "r"(address_in(shared_address(squares + m), r)) : "memory");
        total += part;
      }
      squares[m] = rsqrtf(total / a.K + a.epsilon);
    }
    named_sync(1, 128 * GROUPS);
  }
  if (a.mode == OUT_GATED) finish<GROUPS, SPLITS, true>(a, sums, squares, tile, begin, end);
  else finish<GROUPS, SPLITS, false>(a, sums, squares, tile, begin, end);
}

__device__ __forceinline__ float squares_of(uint4 v) {
  const float2 a = unpack_pair(v.x), b = unpack_pair(v.y), c = unpack_pair(v.z), d = unpack_pair(v.w);
  return a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y + c.x * c.x + c.y * c.y + d.x * d.x + d.y * d.y;
}

// COLUMNS: rows of x at most. GROUPS: warpgroups that multiply, 64 weight rows each.
template <int COLUMNS, int GROUPS>
__device__ __forceinline__ void skinny_body(const TensorMap& w_map, const TensorMap& x_map, const Skinny& a) {
  constexpr int ROWS = 64 * GROUPS, CONSUMERS = 128 * GROUPS, W_BYTES = ROWS * DEPTH * 2, STAGE_BYTES = W_BYTES + COLUMNS * DEPTH * 2;
  constexpr int STRIDE = ROWS + 4;                                               // of partial sums: eight rows by four columns meet no bank twice
  constexpr int SQUARED = 16 * GROUPS, PASSES = (COLUMNS + SQUARED - 1) / SQUARED;  // rows whose squares are summed at a time: eight lanes to a row
  extern __shared__ unsigned char raw[];
  __shared__ __align__(8) u64 barriers[2 * MAX_STAGES];
  __shared__ __align__(16) float row_squares[COLUMNS];
  const u32 ring = (shared_address(raw) + 1023) & ~1023u;
  const u32 full = shared_address(barriers), empty = full + 8 * MAX_STAGES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int rank = rank_in_cluster(), tile = blockIdx.x / a.splits;
  const int blocks = (a.K + DEPTH - 1) / DEPTH, first = blocks * rank / a.splits, steps = blocks * (rank + 1) / a.splits - first;
  if (threadIdx.x == 0) {
    for (int i = 0; i < a.stages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 4 * GROUPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  int stage = 0;
  u32 phase = 0;
  auto next_stage = [&] {
    if (++stage == a.stages) { stage = 0; phase ^= 1; }
  };
  if (warp == 4 * GROUPS) {
    const int ahead = min(a.stages, steps);
    auto load_weights = [&](int to, int step) {
      barrier_expect(full + 8 * to, W_BYTES + a.M * DEPTH * 2);
      load_box_2d(w_map, ring + to * STAGE_BYTES, full + 8 * to, (first + step) * DEPTH, tile * ROWS);
    };
    auto load_x = [&](int to, int step) { load_box_2d(x_map, ring + to * STAGE_BYTES + W_BYTES, full + 8 * to, (first + step) * DEPTH, 0); };
    if (lane == 0) {
      for (int i = 0; i < ahead; i++) load_weights(i, i);
      if (steps <= a.stages) let_next_start();
      wait_for_previous();
      for (int i = 0; i < ahead; i++) load_x(i, i);
    }
    __syncwarp();
    for (int i = ahead; i < steps; i++) {
      barrier_wait(empty + 8 * stage, phase);
      if (lane == 0) {
        load_weights(stage, i);
        load_x(stage, i);
        if (i == steps - 1) let_next_start();
      }
      __syncwarp();
      next_stage();
    }
  } else {
    float d[COLUMNS / 2] = {}, squares[PASSES] = {};
    auto multiply_stage = [&] {
      barrier_wait(full + 8 * stage, phase);
      const u32 at = ring + stage * STAGE_BYTES;
      const u64 w = operand_along_k(at + (warp >> 2) * (64 * DEPTH * 2)), x = operand_along_k(at + W_BYTES);
      products_begin();
#pragma unroll
      for (int j = 0; j < DEPTH / 16; j++) multiply<COLUMNS>(d, w + 2 * j, x + 2 * j);
      products_commit();
      if (a.normalise) {
#pragma unroll
        for (int p = 0; p < PASSES; p++) {
          const int row = p * SQUARED + warp * 4 + (lane >> 3);
          if (row < COLUMNS) squares[p] += squares_of(load_shared(at + W_BYTES + row * (DEPTH * 2) + (lane & 7) * 16));
        }
      }
    };
    // A stage that will be filled again is freed at once; the last ones need not be.
    int i = 0;
    for (; i < steps - a.stages; i++) {
      multiply_stage();
      products_wait<0>();
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + 8 * stage);
      next_stage();
    }
    for (; i < steps; i++) {
      multiply_stage();
      next_stage();
    }
    products_wait<0>();
    pin(d);
    // The ring becomes the place of the partial sums when every warpgroup is done with it: [M][STRIDE] floats.
    named_sync(1, CONSUMERS);
    const u32 mine = ring + (warp * 16 + (lane >> 2)) * 4;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int m = 8 * j + 2 * (lane & 3) + (e & 1);
        if (m < a.M) asm volatile("st.shared.f32 [%0], %1;" ::"r"(mine + m * (STRIDE * 4) + (e >> 1) * 32), "f"(d[4 * j + e]) : "memory");
      }
    if (a.normalise) {
#pragma unroll
      for (int p = 0; p < PASSES; p++) {
        float s = squares[p];
        s += __shfl_xor_sync(~0u, s, 1);
        s += __shfl_xor_sync(~0u, s, 2);
        s += __shfl_xor_sync(~0u, s, 4);
        const int row = p * SQUARED + warp * 4 + (lane >> 3);
        if ((lane & 7) == 0 && row < COLUMNS) row_squares[row] = s;
      }
    }
    wait_for_previous();
    __syncwarp();
  }
  if (a.splits == 1) __syncthreads();
  else cluster_sync();
  if (warp < 4 * GROUPS) {
    switch (a.splits) {
      case 1: finish_share<GROUPS, 1>(a, ring, row_squares, rank, tile); break;
      case 2: finish_share<GROUPS, 2>(a, ring, row_squares, rank, tile); break;
      case 4: finish_share<GROUPS, 4>(a, ring, row_squares, rank, tile); break;
      default: finish_share<GROUPS, 8>(a, ring, row_squares, rank, tile);
    }
  }
  if (a.splits == 1) return;
  __syncwarp();
  // No block leaves while another may still read its sums. Nothing was written that the others read: no release.
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

#define SKINNY(COLUMNS, GROUPS)                                                                                  \
  extern "C" __global__ void __launch_bounds__(128 * GROUPS + 32, 2)                                             \
      skinny_##COLUMNS##_##GROUPS(const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap x_map, \
                                  const __grid_constant__ Skinny a) {                                            \
    skinny_body<COLUMNS, GROUPS>(w_map, x_map, a);                                                               \
  }
SKINNY(16, 1)
SKINNY(32, 1)
SKINNY(64, 1)
SKINNY(128, 1)
SKINNY(16, 2)
SKINNY(32, 2)
SKINNY(64, 2)
SKINNY(128, 2)
