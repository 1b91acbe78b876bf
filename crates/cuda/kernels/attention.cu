// Attention over the paged KV cache: rope and cache write, split decode, and a plain kernel for the shapes the fast ones do not take.
// Many queries of one sequence: flash.cu.
#include "attention.cuh"

// What turns a projection into a query, key or value: the norm's factor where the product left it out, bias, norm per head, rotation. Null
// where there is none.
struct Rope {
  const float* bias;                 // [heads + 2 kv_heads][head_dim]
  const float* q_norm;               // [head_dim]
  const float* k_norm;               // [head_dim]
  const float* inverse_frequencies;  // [rotary / 2]
  const bf16* residual;              // [tokens][width]: whose norm's factor the projections lack
  int width;
  float norm_epsilon, epsilon;
};

// Sine and cosine of the pairs a lane holds: pair = PAIRS lane + j.
template <int PAIRS>
__device__ __forceinline__ void angles(const Rope& rope, const Heads& h, int position, float (&sine)[PAIRS], float (&cosine)[PAIRS]) {
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int pair = PAIRS * (threadIdx.x & 31) + j;
    sine[j] = 0.f; cosine[j] = 1.f;
    if (pair < h.rotary / 2) {
      sincosf(position * rope.inverse_frequencies[pair], &sine[j], &cosine[j]);
      sine[j] *= h.magnitude;
      cosine[j] *= h.magnitude;
    }
  }
}

// N adjacent aligned elements (1, 2 or 4) in one load or store.
template <int N>
__device__ __forceinline__ void load_adjacent(const bf16* from, float (&v)[N]) {
  if constexpr (N == 1) v[0] = __bfloat162float(*from);
  else {
    u32 pairs[N / 2];
    if constexpr (N == 4) *reinterpret_cast<uint2*>(pairs) = *reinterpret_cast<const uint2*>(from);
    else pairs[0] = *reinterpret_cast<const u32*>(from);
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = j & 1 ? unpack_bf16(pairs[j / 2]).y : unpack_bf16(pairs[j / 2]).x;
  }
}
template <int N>
__device__ __forceinline__ void store_adjacent(bf16* to, const float (&v)[N]) {
  if constexpr (N == 1) *to = __float2bfloat16(v[0]);
  else if constexpr (N == 2) *reinterpret_cast<u32*>(to) = pack_bf16(v[0], v[1]);
  else *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}

// One head of one token by one warp, from the projections to `to` (which may be where it came from). `head` counts queries, then keys,
// then values. A lane holds PAIRS adjacent pairs, or as many as a head has left for it.
template <int PAIRS>
__device__ __forceinline__ void prepare_head(const Rope& rope, const Heads& h, const bf16* from, bf16* to, int head, float factor, const float (&sine)[PAIRS], const float (&cosine)[PAIRS]) {
  const int lane = threadIdx.x & 31, half = h.rotary / 2, rest = h.head_dim - h.rotary, first = PAIRS * lane;
  const bool is_value = head >= h.heads + h.kv_heads;
  const bool whole = half % PAIRS == 0 && h.head_dim % PAIRS == 0;
  const float* b = rope.bias ? rope.bias + head * h.head_dim : nullptr;
  const float* norm = is_value ? nullptr : head < h.heads ? rope.q_norm : rope.k_norm;
  float lo[PAIRS] = {}, hi[PAIRS] = {}, tail[PAIRS], squares = 0.f;
  if (whole && first < half) {
    load_adjacent<PAIRS>(from + first, lo);
    load_adjacent<PAIRS>(from + half + first, hi);
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int pair = first + j;
    tail[j] = 0.f;
    if (pair < half) {
      if (!whole) {
        lo[j] = __bfloat162float(from[pair]);
        hi[j] = __bfloat162float(from[pair + half]);
      }
      lo[j] = lo[j] * factor + (b ? b[pair] : 0.f);
      hi[j] = hi[j] * factor + (b ? b[pair + half] : 0.f);
    }
    // Elements past the rotary dimension; a model with them has no more than 32 * PAIRS of them.
    if (pair < rest) tail[j] = __bfloat162float(from[h.rotary + pair]) * factor + (b ? b[h.rotary + pair] : 0.f);
    squares += lo[j] * lo[j] + hi[j] * hi[j] + tail[j] * tail[j];
  }
  if (norm) {
    const float scale = rsqrtf(warp_sum(squares) / h.head_dim + rope.epsilon);
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int pair = first + j;
      if (pair < half) { lo[j] *= scale * norm[pair]; hi[j] *= scale * norm[pair + half]; }
      if (pair < rest) tail[j] *= scale * norm[h.rotary + pair];
    }
  }
  float turned_lo[PAIRS], turned_hi[PAIRS];
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const float s = is_value ? 0.f : sine[j], c = is_value ? 1.f : cosine[j];
    turned_lo[j] = lo[j] * c - hi[j] * s;
    turned_hi[j] = hi[j] * c + lo[j] * s;
  }
  if (whole && first < half) {
    store_adjacent<PAIRS>(to + first, turned_lo);
    store_adjacent<PAIRS>(to + half + first, turned_hi);
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int pair = first + j;
    if (!whole && pair < half) {
      to[pair] = __float2bfloat16(turned_lo[j]);
      to[pair + half] = __float2bfloat16(turned_hi[j]);
    }
    if (pair < rest) to[h.rotary + pair] = __float2bfloat16(tail[j]);
  }
}

// q, k, v of every token: q back in place, k and v to the cache. One block a token, one warp a head.
// Moves (heads + 2 kv_heads) * head_dim * 2 bytes in and out. PAIRS: rotated pairs a lane holds.
template <int PAIRS>
__device__ __forceinline__ void rope_write_body(const State& state, const int* row, const int* position, bf16* qkv, const Rope& rope, const Cache& cache, const Heads& h) {
  const int m = blockIdx.x, at = position[m];
  const u64 slot = slot_of(blocks_of(state, row[m]), at, cache.block_size);
  bf16* token = qkv + (u64)m * (h.heads + 2 * h.kv_heads) * h.head_dim;
  __shared__ float partial[32];
  const float factor = rope.residual ? norm_factor(rope.residual + (u64)m * rope.width, rope.width, rope.norm_epsilon, partial) : 1.f;
  float sine[PAIRS], cosine[PAIRS];
  angles<PAIRS>(rope, h, at, sine, cosine);
  for (int head = threadIdx.x >> 5; head < h.heads + 2 * h.kv_heads; head += blockDim.x >> 5) {
    bf16* from = token + head * h.head_dim;
    bf16* cached = head < h.heads + h.kv_heads ? cache.keys : cache.values;
    bf16* to = head < h.heads ? from : cached + (slot * h.kv_heads + (head - h.heads) % h.kv_heads) * h.head_dim;
    prepare_head<PAIRS>(rope, h, from, to, head, factor, sine, cosine);
  }
}
#define ROPE_WRITE(NAME, PAIRS, RESIDENT)                                                                                           \
  extern "C" __global__ void __launch_bounds__(512, RESIDENT) NAME(State state, const int* row, const int* position, bf16* qkv, Rope rope, Cache cache, Heads h) { \
    let_next_start();                                                                                                               \
    wait_for_previous();                                                                                                            \
    rope_write_body<PAIRS>(state, row, position, qkv, rope, cache, h);                                                              \
  }
ROPE_WRITE(rope_write_1, 1, 4)
ROPE_WRITE(rope_write_2, 2, 3)
ROPE_WRITE(rope_write_4, 4, 2)

// ---- decode: one query a sequence. Must read len * kv_heads * head_dim * 4 bytes; bound by memory once the batch is large.
// Block = (split of the positions, up to 8 query heads of one KV head, sequence), W warps, each 16 positions at a time. The block makes its
// queries and the newest key and value from the projections itself; that of the last split writes the latter to the cache. K and V go
// from global memory straight into tensor-core fragments: S^T[16 x 8 heads] = K . q^T, O^T[head_dim x 8 heads] += V^T . P^T. The
// last block of a (sequence, KV head) to finish merges the splits. block_size is a multiple of 16.
#define SPLIT_TILES 8  // a split is at least this many tiles of 16 positions
template <int D, int W>
__device__ __forceinline__ void decode_body(const State& state, const int* row, const int* position, const bf16* qkv, bf16* out, float* part_out, float2* part_ml, u32* arrivals,
                                            const Rope& rope, const Cache& cache, const Heads& h) {
  constexpr int DC = D / 32, DJ = D / 64, PAIRS = D / 64;
  __shared__ __align__(16) bf16 prepared[10][D];  // 8 queries, the newest key, the newest value
  const int split = blockIdx.x, b = blockIdx.z, splits = gridDim.x;
  const int group = h.heads / h.kv_heads, groups = (group + 7) / 8;
  const int hk = blockIdx.y / groups, head0 = hk * group + (blockIdx.y % groups) * 8, G = min(8, (hk + 1) * group - head0);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, ql = lane & 3;
  const int len = position[b] + 1, oldest = h.window ? max(0, len - h.window) : 0;
  const int tile0 = oldest / 16, tiles = (len + 15) / 16 - tile0;
  const int per_split = max(SPLIT_TILES, (tiles + splits - 1) / splits), active = (tiles + per_split - 1) / per_split;
  if (split >= active) {
    wait_for_previous();
    return;
  }
  const int t_begin = tile0 + split * per_split, t_end = min(tile0 + tiles, t_begin + per_split);
  const int* blocks = blocks_of(state, row[b]);
  const u64 token_stride = (u64)h.kv_heads * D;
  uint4 kf[DC][2], vf[DJ][4];
  auto load_tile = [&](int t) {
    const u64 base = slot_of(blocks, t * 16, cache.block_size) * token_stride + (u64)hk * D;
    const bf16* kp = cache.keys + base + g * token_stride + ql * 8;
    const bf16* vp = cache.values + base + (2 * ql) * token_stride + g * 8;
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
  // What earlier steps wrote can be read at once; the projections only when the kernel before is done.
  if (t_begin + warp < t_end) load_tile(t_begin + warp);
  float sine[PAIRS], cosine[PAIRS];
  angles<PAIRS>(rope, h, len - 1, sine, cosine);
  wait_for_previous();
  {
    const bf16* token = qkv + (u64)b * (h.heads + 2 * h.kv_heads) * D;
    __shared__ float partial[W];
    const float factor = rope.residual ? norm_factor(rope.residual + (u64)b * rope.width, rope.width, rope.norm_epsilon, partial) : 1.f;
    for (int i = warp; i < G + 2; i += W) {
      const int head = i < G ? head0 + i : h.heads + (i - G) * h.kv_heads + hk;
      prepare_head<PAIRS>(rope, h, token + (u64)head * D, prepared[i < G ? i : 8 + i - G], head, factor, sine, cosine);
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
  for (int t = t_begin + warp; t < t_end; t += W) {
    const int first = t * 16;
    if (t != t_begin + warp) load_tile(t);
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
    float s[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int c = 0; c < DC; c++) {
      const u32 a0[4] = {kf[c][0].x, kf[c][1].x, kf[c][0].y, kf[c][1].y}, a1[4] = {kf[c][0].z, kf[c][1].z, kf[c][0].w, kf[c][1].w};
      mma_16x8x16(s, a0, qf[c][0], qf[c][1]);
      mma_16x8x16(s, a1, qf[c][2], qf[c][3]);
    }
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
    // A tile wholly outside the window leaves n at -1e30: its weights must be 0, not exp2(0).
    s[0] = s[0] > -1e29f ? exp2_fast(s[0] - n0) : 0.f;
    s[1] = s[1] > -1e29f ? exp2_fast(s[1] - n1) : 0.f;
    s[2] = s[2] > -1e29f ? exp2_fast(s[2] - n0) : 0.f;
    s[3] = s[3] > -1e29f ? exp2_fast(s[3] - n1) : 0.f;
    l0 = l0 * r0 + s[0] + s[2];
    l1 = l1 * r1 + s[1] + s[3];
    u32 pa = pack_bf16(s[0], s[1]), pb = pack_bf16(s[2], s[3]);  // [position][head] -> [head][position]
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
  if (W == 4) let_next_start();
#pragma unroll
  for (int d = 4; d < 32; d <<= 1) {
    l0 += __shfl_xor_sync(~0u, l0, d);
    l1 += __shfl_xor_sync(~0u, l1, d);
  }
  __shared__ float so[W][8][D + 4];
  __shared__ float sm[W][8], sl[W][8];
  __shared__ u32 arrived;
  if (g == 0) { sm[warp][2 * ql] = m0; sm[warp][2 * ql + 1] = m1; sl[warp][2 * ql] = l0; sl[warp][2 * ql + 1] = l1; }
#pragma unroll
  for (int j = 0; j < 8; j++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      if ((e >> 1) < DJ) so[warp][2 * ql + (e & 1)][(e >> 1) * 64 + g * 8 + j] = o[j][e];
  __syncthreads();
  for (int i = threadIdx.x; i < G * D; i += W * 32) {
    const int x = i / D, d = i % D;
    float top = -1e30f, sum = 0.f, weight = 0.f;
#pragma unroll
    for (int w = 0; w < W; w++) top = fmaxf(top, sm[w][x]);
#pragma unroll
    for (int w = 0; w < W; w++) {
      const float f = exp2_fast(sm[w][x] - top);
      sum += f * so[w][x][d];
      weight += f * sl[w][x];
    }
    const u64 head = (u64)b * h.heads + head0 + x;
    if (active == 1) out[head * D + d] = __float2bfloat16(sum / weight);
    else {
      part_out[(head * splits + split) * D + d] = sum;
      if (d == 0) part_ml[head * splits + split] = make_float2(top, weight);
    }
  }
  if (active == 1) return;
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
    out[head * D + d] = __float2bfloat16(sum / weight);
  }
}
#define DECODE(NAME, D, W, RESIDENT)                                                                                                                                               \
  extern "C" __global__ void __launch_bounds__(W * 32, RESIDENT) NAME(State state, const int* row, const int* position, const bf16* qkv, bf16* out, float* part_out,               \
                                                                      float2* part_ml, u32* arrivals, Rope rope, Cache cache, Heads h) {                                          \
    if (W == 8) let_next_start();                                                                                                                                                 \
    decode_body<D, W>(state, row, position, qkv, out, part_out, part_ml, arrivals, rope, cache, h);                                                                               \
  }
DECODE(decode_64, 64, 4, 4)
DECODE(decode_128, 128, 4, 4)
DECODE(decode_64_few, 64, 8, 1)
DECODE(decode_128_few, 128, 8, 1)

// ---- any head size up to 256 and any group: one warp a query and head, one key at a time. For correctness, not for speed.
extern "C" __global__ void attention_plain(State state, const int* row, const int* position, const bf16* qkv, bf16* out, Cache cache, Heads h, int tokens) {
  let_next_start();
  wait_for_previous();
  const int warp = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (warp >= tokens * h.heads) return;
  const int m = warp / h.heads, head = warp % h.heads, hk = head / (h.heads / h.kv_heads), D = h.head_dim;
  const int at = position[m], oldest = h.window ? max(0, at - h.window + 1) : 0;
  const int* blocks = blocks_of(state, row[m]);
  const bf16* from = qkv + ((u64)m * (h.heads + 2 * h.kv_heads) + head) * D;
  float q[8], o[8];
#pragma unroll
  for (int j = 0; j < 8; j++) { q[j] = lane + 32 * j < D ? __bfloat162float(from[lane + 32 * j]) : 0.f; o[j] = 0.f; }
  float top = -1e30f, sum = 0.f;
  for (int key = oldest; key <= at; key++) {
    const u64 base = (slot_of(blocks, key, cache.block_size) * h.kv_heads + hk) * D;
    float dot = 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) if (lane + 32 * j < D) dot += q[j] * __bfloat162float(cache.keys[base + lane + 32 * j]);
    const float s = cap_score(warp_sum(dot) * h.scale, h.softcap), now = fmaxf(top, s), shrink = __expf(top - now), p = __expf(s - now);
    top = now;
    sum = sum * shrink + p;
#pragma unroll
    for (int j = 0; j < 8; j++) o[j] = o[j] * shrink + (lane + 32 * j < D ? p * __bfloat162float(cache.values[base + lane + 32 * j]) : 0.f);
  }
#pragma unroll
  for (int j = 0; j < 8; j++) if (lane + 32 * j < D) out[((u64)m * h.heads + head) * D + lane + 32 * j] = __float2bfloat16(o[j] / sum);
}
