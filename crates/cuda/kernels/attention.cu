// Attention over the paged KV cache: split decode, and a plain kernel for the shapes the fast ones do not take.
// Many queries of one sequence: flash.cu.
#include "hopper.cuh"
#include "rope.cuh"

// ---- decode: one query a sequence. Must read len * kv_heads * head_dim * 4 bytes; bound by memory once the batch is large.
// Block = (split of the positions, up to 8 query heads of one KV head, sequence), W warps, each 16 positions (a tile) at a time. The block makes
// its queries and the newest key and value from the projections itself; that of the last split writes the latter to the cache. A tile goes
// to tensor-core fragments, S^T[16 x 8 heads] = K . q^T, O^T[head_dim x 8 heads] += V^T . P^T, either straight from memory or through a ring
// of the warp's own in shared memory, which the copy engine fills: the warps' own loads of two tiles take 4 us to issue, and one block a
// multiprocessor then cannot keep memory busy. Where the splits of a (sequence, KV head) are a cluster, each block merges a part of the heads' elements,
// which the others store into its shared memory; else the last block to finish merges all; where blocks of whole sequences suffice there is nothing to
// merge (src/decode.rs). block_size is a multiple of 16.
//
// Beside prompts (`counts` says how many sequences there are, of as many as the grid has room for; `beside`: flash.cu runs before it) these blocks
// begin when those of flash.cu run, on the multiprocessors that those leave free: flash.cu lets them start when all before it is done, so the
// projections are there, and nothing here needs what flash.cu writes. One block waits for its end, and with it this kernel's.
#define DECODE_STAGES 2  // tiles of a warp's ring at most
// A split is at least this many tiles of 16 positions: where its sums are merged through memory, and within a cluster.
#define SPLIT_TILES 8
#define CLUSTER_TILES 4
#define CLUSTER_BLOCKS 8  // of a cluster at most
// RING: a warp's first lane has the copy engine bring its tiles, `stages` ahead.
// CLUSTER: the splits of a sequence may be a cluster of blocks, which merge through shared memory.
// `table`, `position`: the sequence's row of the block tables, and where its newest token stands.
template <int D, int W, bool RING, bool CLUSTER>
__device__ __forceinline__ void decode_body(const State& state, int table, int position, const Element* qkv, Element* out, float* part_out, float2* part_ml, u32* arrivals, const Rope& rope,
                                            const Cache& cache, const Heads& h, const TensorMap& map, int stages, bool beside) {
  constexpr int DC = D / 32, DJ = D / 64, PAIRS = D / 64, BOX_BYTES = 16 * 128, TILE_BYTES = 2 * DJ * BOX_BYTES;
  extern __shared__ __align__(1024) unsigned char ring[];
  __shared__ __align__(8) u64 barriers[RING ? W * DECODE_STAGES : 1];
  __shared__ __align__(16) Element prepared[10][D];  // 8 queries, the newest key, the newest value
  const int split = blockIdx.x, b = blockIdx.z, splits = gridDim.x;
  const int group = h.heads / h.kv_heads, groups = (group + 7) / 8;
  const int hk = blockIdx.y / groups, head0 = hk * group + (blockIdx.y % groups) * 8, G = min(8, (hk + 1) * group - head0);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, ql = lane & 3;
  // A tile in the ring: keys, then values, each as boxes of 16 positions by 64 elements; one copy brings them all.
  const u32 own = shared_address(ring) + warp * stages * TILE_BYTES, full = shared_address(barriers) + 8 * warp * DECODE_STAGES;
  if (RING && lane == 0) {
    for (int i = 0; i < DECODE_STAGES; i++) barrier_init(full + 8 * i, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  const int len = position + 1, oldest = h.window ? max(0, len - h.window) : 0;
  const int tile0 = oldest / 16, tiles = (len + 15) / 16 - tile0;
  const bool clustered = CLUSTER && blocks_of_cluster() > 1;
  const int per_split = splits == 1 ? tiles : max(clustered ? CLUSTER_TILES : SPLIT_TILES, (tiles + splits - 1) / splits);
  const int active = splits == 1 ? 1 : (tiles + per_split - 1) / per_split;
  constexpr int EACH = (10 + W - 1) / W;  // heads a warp prepares
  Projected<PAIRS> bias[EACH], projected[EACH];
  auto head_of = [&](int i) { return i < G ? head0 + i : h.heads + (i - G) * h.kv_heads + hk; };
  // The blocks of the first split wait for the kernel before, which is enough; beside prompts one of them does, at the end.
  if (split >= active) return;
  // What the others bring to a block's shared memory may come once all of them run.
  if (clustered && active > 1) cluster_arrive();
  const int t_begin = tile0 + split * per_split, t_end = min(tile0 + tiles, t_begin + per_split);
  const int* blocks = blocks_of(state, table);
  const u64 token_stride = (u64)h.kv_heads * D;
  uint4 kf[DC][2], vf[DJ][4];
  auto load_tile = [&](int t) {
    const u64 base = slot_of(blocks, t * 16, cache.block_size) * token_stride + (u64)hk * D;
    const Element* kp = cache.keys + base + g * token_stride + ql * 8;
    const Element* vp = cache.values + base + (2 * ql) * token_stride + g * 8;
#pragma unroll
    for (int c = 0; c < DC; c++) {
      kf[c][0] = load_streaming(kp + c * 32);
      kf[c][1] = load_streaming(kp + 8 * token_stride + c * 32);
    }
#pragma unroll
    for (int x = 0; x < DJ; x++) {
      vf[x][0] = load_streaming(vp + x * 64);
      vf[x][1] = load_streaming(vp + token_stride + x * 64);
      vf[x][2] = load_streaming(vp + 8 * token_stride + x * 64);
      vf[x][3] = load_streaming(vp + 9 * token_stride + x * 64);
    }
  };
  // A tile's entry in the block table is asked for a tile ahead, and used when the tile is copied. Blocks of one tile need no division.
  const int in_block = cache.block_size / 16;
  auto entry_of = [&](int t) {
    const int at = min(t, t_end - 1);
    return load_now(blocks + (in_block == 1 ? at : at / in_block));
  };
  auto copy_tile = [&](int entry, int t, int stage) {
    const int slot = entry * cache.block_size + (in_block == 1 ? 0 : t % in_block * 16);
    barrier_expect(full + 8 * stage, TILE_BYTES);
    load_box_5d(map, own + stage * TILE_BYTES, full + 8 * stage, 0, slot, 0, 0, hk);
  };
  int next = 0;  // the entry of the tile that the first lane copies next
  auto piece = [&](int stage, int box, int row, int chunk) { return load_shared(own + stage * TILE_BYTES + box * BOX_BYTES + row * 128 + ((chunk ^ (row & 7)) << 4)); };
  // What earlier steps wrote can be read at once; the projections only when the kernel before is done, or, beside prompts, now.
  if constexpr (RING) {
    if (lane == 0) {
      const int t = t_begin + warp, first = entry_of(t);
      next = entry_of(t + W);
      int after = 0;
      if (stages == 2) after = entry_of(t + 2 * W);
      if (t < t_end) copy_tile(first, t, 0);
      if (stages == 2) {
        if (t + W < t_end) copy_tile(next, t + W, 1);
        next = after;
      }
    }
    __syncwarp();
  } else {
    if (t_begin + warp < t_end) load_tile(t_begin + warp);
  }
#pragma unroll
  for (int k = 0; k < EACH; k++)
    if (warp + k * W < G + 2) load_bias<PAIRS>(rope, h, head_of(warp + k * W), bias[k]);
  float sine[PAIRS], cosine[PAIRS];
  angles<PAIRS>(rope, h, len - 1, sine, cosine);
  if (!beside) wait_for_previous();
  {
    const Element* token = qkv + (u64)b * (h.heads + 2 * h.kv_heads) * D;
    __shared__ float partial[W];
#pragma unroll
    for (int k = 0; k < EACH; k++)
      if (warp + k * W < G + 2) load_head<PAIRS>(h, token + (u64)head_of(warp + k * W) * D, projected[k]);
    const float factor = rope.residual ? norm_factor(rope.residual + (u64)b * rope.width, rope.width, rope.norm_epsilon, partial) : 1.f;
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const int i = warp + k * W;
      if (i < G + 2) finish_head<PAIRS>(rope, h, projected[k], bias[k], prepared[i < G ? i : 8 + i - G], head_of(i), factor, sine, cosine);
    }
    __syncthreads();
    if (split == active - 1 && blockIdx.y % groups == 0) {
      const u64 at = slot_of(blocks, len - 1, cache.block_size) * token_stride + (u64)hk * D;
      for (int i = threadIdx.x; i < D / 4; i += W * 32) {
        const bool value = i >= D / 8;
        const int piece = i % (D / 8);
        *reinterpret_cast<uint4*>((value ? cache.values : cache.keys) + at + piece * 8) = *reinterpret_cast<const uint4*>(&prepared[8 + value][piece * 8]);
      }
    }
  }
  const float scale_log2 = h.softcap > 0.f ? 1.4426950408889634f : h.scale * 1.4426950408889634f;
  u32 qf[DC][4];
#pragma unroll
  for (int c = 0; c < DC; c++) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (g < G) v = *reinterpret_cast<const uint4*>(&prepared[g][c * 32 + ql * 8]);
    qf[c][0] = v.x; qf[c][1] = v.y; qf[c][2] = v.z; qf[c][3] = v.w;
  }
  float o[8][4] = {};  // rows d = g * 8 + j and (head_dim 128) 64 + g * 8 + j, columns heads 2ql, 2ql + 1
  float m0 = -1e30f, m1 = -1e30f, l0 = 0.f, l1 = 0.f;
  int stage = 0;
  u32 phase = 0;
  for (int t = t_begin + warp; t < t_end; t += W) {
    const int first = t * 16;
    if constexpr (RING) {
      barrier_wait(full + 8 * stage, phase);
#pragma unroll
      for (int c = 0; c < DC; c++) {
        kf[c][0] = piece(stage, c / 2, g, c % 2 * 4 + ql);
        kf[c][1] = piece(stage, c / 2, g + 8, c % 2 * 4 + ql);
      }
#pragma unroll
      for (int x = 0; x < DJ; x++)
#pragma unroll
        for (int e = 0; e < 4; e++) vf[x][e] = piece(stage, DJ + x, 2 * ql + (e & 1) + (e >> 1) * 8, g);
      // Once the tile is in all lanes' registers the next one may come, while this one is computed. The vote waits for the loads, and says nothing else: the
      // copy engine is not ordered behind loads that are under way.
      u32 seen = 0;
#pragma unroll
      for (int c = 0; c < DC; c++) seen |= kf[c][0].w | kf[c][1].w;
#pragma unroll
      for (int x = 0; x < DJ; x++)
#pragma unroll
        for (int e = 0; e < 4; e++) seen |= vf[x][e].w;
      if (__all_sync(~0u, seen == 0x5eed5eedu)) __nanosleep(1);
      __syncwarp();
      if (lane == 0 && t + stages * W < t_end) {
        copy_tile(next, t + stages * W, stage);
        next = entry_of(t + (stages + 1) * W);
      }
      __syncwarp();
      if (++stage == stages) { stage = 0; phase ^= 1; }
    } else {
      if (t != t_begin + warp) load_tile(t);
    }
    if (first + 16 >= len) {
      // The newest position comes from shared memory: the cache may not hold it yet. What lies past it is not ours and may be NaN:
      // 0 * NaN is not 0.
      const int newest = len - 1 - first;
#pragma unroll
      for (int c = 0; c < DC; c++) {
        const uint4 k = *reinterpret_cast<const uint4*>(&prepared[8][c * 32 + ql * 8]);
        if (g == newest) kf[c][0] = k;
        if (g + 8 == newest) kf[c][1] = k;
      }
#pragma unroll
      for (int x = 0; x < DJ; x++) {
        const uint4 v = *reinterpret_cast<const uint4*>(&prepared[9][x * 64 + g * 8]), zero = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int at = 2 * ql + (e & 1) + (e >> 1) * 8;
          if (at == newest) vf[x][e] = v;
          if (at > newest) vf[x][e] = zero;
        }
      }
    }
    float s[4] = {0.f, 0.f, 0.f, 0.f}, second[4] = {0.f, 0.f, 0.f, 0.f};  // two chains of products
#pragma unroll
    for (int c = 0; c < DC; c++) {
      const u32 a0[4] = {kf[c][0].x, kf[c][1].x, kf[c][0].y, kf[c][1].y}, a1[4] = {kf[c][0].z, kf[c][1].z, kf[c][0].w, kf[c][1].w};
      mma_16x8x16(s, a0, qf[c][0], qf[c][1]);
      mma_16x8x16(second, a1, qf[c][2], qf[c][3]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) s[e] += second[e];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int at = first + g + (e >> 1) * 8;
      if (h.softcap > 0.f) s[e] = cap_score(s[e] * h.scale, h.softcap);
      s[e] = at < len && at >= oldest ? s[e] * scale_log2 : -1e30f;
    }
    float x0 = fmaxf(s[0], s[2]), x1 = fmaxf(s[1], s[3]);
#pragma unroll
    for (int d = 4; d < 32; d <<= 1) {
      x0 = fmaxf(x0, __shfl_xor_sync(~0u, x0, d));
      x1 = fmaxf(x1, __shfl_xor_sync(~0u, x1, d));
    }
    const float n0 = fmaxf(m0, x0), n1 = fmaxf(m1, x1), r0 = exp2_fast(m0 - n0), r1 = exp2_fast(m1 - n1);
    m0 = n0; m1 = n1;
    // A tile wholly outside the window leaves n at -1e30: its weights must be 0, not exp2(0). A score that is NaN must stay NaN: its row is damaged.
    s[0] = s[0] <= -1e29f ? 0.f : exp2_fast(s[0] - n0);
    s[1] = s[1] <= -1e29f ? 0.f : exp2_fast(s[1] - n1);
    s[2] = s[2] <= -1e29f ? 0.f : exp2_fast(s[2] - n0);
    s[3] = s[3] <= -1e29f ? 0.f : exp2_fast(s[3] - n1);
    l0 = l0 * r0 + s[0] + s[2];
    l1 = l1 * r1 + s[1] + s[3];
    u32 pa = pack_pair(s[0], s[1]), pb = pack_pair(s[2], s[3]);  // [position][head] -> [head][position]
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pa));
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pb));
#pragma unroll
    for (int j = 0; j < 8; j++) {
      o[j][0] *= r0; o[j][1] *= r1; o[j][2] *= r0; o[j][3] *= r1;
      u32 a[4] = {0, 0, 0, 0};
      const u32 pick = (j & 1) ? 0x7632u : 0x5410u;
#pragma unroll
      for (int x = 0; x < DJ; x++) {
        const u32 *v0 = reinterpret_cast<const u32*>(&vf[x][0]), *v1 = reinterpret_cast<const u32*>(&vf[x][1]);
        const u32 *v2 = reinterpret_cast<const u32*>(&vf[x][2]), *v3 = reinterpret_cast<const u32*>(&vf[x][3]);
        a[x] = __byte_perm(v0[j >> 1], v1[j >> 1], pick);
        a[2 + x] = __byte_perm(v2[j >> 1], v3[j >> 1], pick);
      }
      mma_16x8x16(o[j], a, pa, pb);
    }
  }
  // Where there are many blocks, memory is busy until here: what the next kernel copies ahead would only compete.
  if (W == 4 || RING) let_next_start();
#pragma unroll
  for (int d = 4; d < 32; d <<= 1) {
    l0 += __shfl_xor_sync(~0u, l0, d);
    l1 += __shfl_xor_sync(~0u, l1, d);
  }
  // Partial sums of the warps; over a warp's ring, which it has read.
  constexpr int SUMS = 8 * (D + 4);
  __shared__ __align__(16) float own_sums[RING ? 4 : W * SUMS];
  float* so = RING ? reinterpret_cast<float*>(ring) : own_sums;
  const int apart = RING ? stages * (TILE_BYTES / 4) : SUMS;
  __syncwarp();
  __shared__ float sm[W][8], sl[W][8];
  __shared__ u32 arrived;
  __shared__ float gathered[CLUSTER ? 8 * D + CLUSTER_BLOCKS : 1];  // of each split of the cluster, this block's part of the sums
  __shared__ float2 gathered_ml[CLUSTER ? CLUSTER_BLOCKS : 1][8];
  const int part = (G * D + active - 1) / active;
  if (g == 0) { sm[warp][2 * ql] = m0; sm[warp][2 * ql + 1] = m1; sl[warp][2 * ql] = l0; sl[warp][2 * ql + 1] = l1; }
  // Four elements at a time; lanes of odd ql take theirs in the other order, so that eight lanes meet no bank twice.
#pragma unroll
  for (int e = 0; e < 2 * DJ; e++) {
    float* to = so + warp * apart + (2 * ql + (e & 1)) * (D + 4) + (e >> 1) * 64 + g * 8;
    const float4 lo = make_float4(o[0][e], o[1][e], o[2][e], o[3][e]), hi = make_float4(o[4][e], o[5][e], o[6][e], o[7][e]);
    const int odd = ql & 1;
    reinterpret_cast<float4*>(to)[odd] = odd ? hi : lo;
    reinterpret_cast<float4*>(to)[odd ^ 1] = odd ? lo : hi;
  }
  __syncthreads();
  if (clustered && active > 1) cluster_wait();
  for (int i = threadIdx.x; i < G * D; i += W * 32) {
    const int x = i / D, d = i % D;
    float top = -1e30f, sum = 0.f, weight = 0.f;
#pragma unroll
    for (int w = 0; w < W; w++) top = fmaxf(top, sm[w][x]);
#pragma unroll
    for (int w = 0; w < W; w++) {
      const float f = exp2_fast(sm[w][x] - top);
      sum += f * so[w * apart + x * (D + 4) + d];
      weight += f * sl[w][x];
    }
    const u64 head = (u64)b * h.heads + head0 + x;
    if (active == 1) out[head * D + d] = to_element(sum / weight);
    else if (clustered) {
      store_cluster(shared_address(gathered + split * part + i % part), i / part, sum);
      if (d < active) store_cluster(shared_address(&gathered_ml[split][x]), d, make_float2(top, weight));
    } else {
      part_out[(head * splits + split) * D + d] = sum;
      if (d == 0) part_ml[head * splits + split] = make_float2(top, weight);
    }
  }
  if (active == 1) return;
  if (clustered) {
    cluster_arrive();
    cluster_wait();
    for (int at = threadIdx.x; at < part && split * part + at < G * D; at += W * 32) {
      const int i = split * part + at, x = i / D;
      float top = -1e30f, sum = 0.f, weight = 0.f;
      for (int s = 0; s < active; s++) top = fmaxf(top, gathered_ml[s][x].x);
      for (int s = 0; s < active; s++) {
        const float2 p = gathered_ml[s][x];
        const float f = exp2_fast(p.x - top);
        weight += f * p.y;
        sum += f * gathered[s * part + at];
      }
      out[((u64)b * h.heads + head0 + x) * D + i % D] = to_element(sum / weight);
    }
    return;
  }
  __threadfence();
  __syncthreads();
  u32* counter = arrivals + (u64)b * gridDim.y + blockIdx.y;
  if (threadIdx.x == 0) arrived = atomicAdd(counter, 1);
  __syncthreads();
  if (arrived != active - 1) return;
  if (threadIdx.x == 0) *counter = 0;
  __threadfence();
  for (int i = threadIdx.x; i < G * D; i += W * 32) {
    const u64 head = (u64)b * h.heads + head0 + i / D;
    const int d = i % D;
    const float2* ml = part_ml + head * splits;
    float top = -1e30f, sum = 0.f, weight = 0.f;
    for (int s = 0; s < active; s++) top = fmaxf(top, __ldcg(&ml[s].x));
#pragma unroll 4
    for (int s = 0; s < active; s++) {
      const float2 p = __ldcg(ml + s);
      const float f = exp2_fast(p.x - top);
      weight += f * p.y;
      sum += f * __ldcg(part_out + (head * splits + s) * D + d);
    }
    out[head * D + d] = to_element(sum / weight);
  }
}
#define DECODE(NAME, D, W, RING, CLUSTER, RESIDENT)                                                                                                                           \
  extern "C" __global__ void __launch_bounds__(W * 32, RESIDENT) NAME(State state, const Counts* counts, const int* row, const int* position, const Element* qkv, Element* out,\
                                                                      float* part_out, float2* part_ml, u32* arrivals, Rope rope, Cache cache, Heads h,                       \
                                                                      const __grid_constant__ TensorMap map, int stages, int beside) {                                        \
    if (W == 8 && !RING) let_next_start();                                                                                                                                    \
    /* Asked for together, before the first of them is needed. */                                                                                                             \
    const int at = load_now(position + blockIdx.z), table = load_now(row + blockIdx.z), sequences = counts ? load_now(&counts->decodes) : gridDim.z;                           \
    if (RING && threadIdx.x == 0) prefetch_map(map);                                                                                                                          \
    if (blockIdx.z >= sequences) return;                                                                                                                                      \
    decode_body<D, W, RING, CLUSTER>(state, table, at, qkv, out, part_out, part_ml, arrivals, rope, cache, h, map, stages, beside);                                           \
    if (beside && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == sequences - 1) wait_for_previous();                                                                     \
  }
DECODE(decode_64, 64, 4, false, false, 4)
DECODE(decode_128, 128, 4, false, false, 4)
DECODE(decode_64_few, 64, 8, false, true, 1)
DECODE(decode_128_few, 128, 8, false, true, 1)
DECODE(decode_64_deep, 64, 8, true, true, 1)
DECODE(decode_128_deep, 128, 8, true, true, 1)
DECODE(decode_64_shallow, 64, 4, true, true, 4)
DECODE(decode_128_shallow, 128, 4, true, false, 4)

// ---- any head size up to 256 and any group: one warp a query and head, one key at a time. For correctness, not for speed.
extern "C" __global__ void attention_plain(State state, const int* row, const int* position, const Element* qkv, Element* out, Cache cache, Heads h, int tokens) {
  let_next_start();
  wait_for_previous();
  const int warp = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (warp >= tokens * h.heads) return;
  const int m = warp / h.heads, head = warp % h.heads, hk = head / (h.heads / h.kv_heads), D = h.head_dim;
  const int at = position[m], oldest = h.window ? max(0, at - h.window + 1) : 0;
  const int* blocks = blocks_of(state, row[m]);
  const Element* from = qkv + ((u64)m * (h.heads + 2 * h.kv_heads) + head) * D;
  float q[8], o[8];
#pragma unroll
  for (int j = 0; j < 8; j++) { q[j] = lane + 32 * j < D ? to_float(from[lane + 32 * j]) : 0.f; o[j] = 0.f; }
  float top = -1e30f, sum = 0.f;
  for (int key = oldest; key <= at; key++) {
    const u64 base = (slot_of(blocks, key, cache.block_size) * h.kv_heads + hk) * D;
    float dot = 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) if (lane + 32 * j < D) dot += q[j] * to_float(cache.keys[base + lane + 32 * j]);
    const float s = cap_score(warp_sum(dot) * h.scale, h.softcap), now = fmaxf(top, s), shrink = __expf(top - now), p = __expf(s - now);
    top = now;
    sum = sum * shrink + p;
#pragma unroll
    for (int j = 0; j < 8; j++) o[j] = o[j] * shrink + (lane + 32 * j < D ? p * to_float(cache.values[base + lane + 32 * j]) : 0.f);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) if (lane + 32 * j < D) out[((u64)m * h.heads + head) * D + lane + 32 * j] = to_element(o[j] / sum);
}
