// Rope and cache write of prompts: q, k, v of every token, q back in place, k and v to the cache. One block a token; those of decodes, which come
// first and are none of its business if `counts` says how many there are, leave at once.
// Moves (heads + 2 kv_heads) * head_dim * 2 bytes in and out, and reads the residual where the norm's factor is lacking.
#include "rope.cuh"

// Any head, one warp each. PAIRS: rotated pairs a lane holds.
template <int PAIRS>
__device__ __forceinline__ void rope_write_body(const State& state, const int* row, const int* position, Element* qkv, const Rope& rope, const Cache& cache, const Heads& h) {
  const int m = blockIdx.x, at = position[m];
  const u64 slot = slot_of(blocks_of(state, row[m]), at, cache.block_size);
  Element* token = qkv + (u64)m * (h.heads + 2 * h.kv_heads) * h.head_dim;
  __shared__ float partial[32];
  // The first head's loads are under way while the factor is summed.
  const int warps = blockDim.x >> 5, all = h.heads + 2 * h.kv_heads;
  int head = threadIdx.x >> 5;
  Projected<PAIRS> v, bias;
  load_head<PAIRS>(h, token + head * h.head_dim, v);
  load_bias<PAIRS>(rope, h, head, bias);
  float sine[PAIRS], cosine[PAIRS];
  angles<PAIRS>(rope, h, at, sine, cosine);
  const float factor = rope.residual ? norm_factor(rope.residual + (u64)m * rope.width, rope.width, rope.norm_epsilon, partial) : 1.f;
  for (;;) {
    Element* cached = head < h.heads + h.kv_heads ? cache.keys : cache.values;
    Element* to = head < h.heads ? token + head * h.head_dim : cached + (slot * h.kv_heads + (head - h.heads) % h.kv_heads) * h.head_dim;
    finish_head<PAIRS>(rope, h, v, bias, to, head, factor, sine, cosine);
    head += warps;
    if (head >= all) break;
    load_head<PAIRS>(h, token + head * h.head_dim, v);
    load_bias<PAIRS>(rope, h, head, bias);
  }
}
#define ROPE_WRITE(NAME, PAIRS, RESIDENT)                                                                                           \
  extern "C" __global__ void __launch_bounds__(512, RESIDENT) NAME(State state, const Counts* counts, const int* row, const int* position, Element* qkv, Rope rope, Cache cache, Heads h) { \
    let_next_start();                                                                                                               \
    if (counts && blockIdx.x < counts->decodes) return;                                                                             \
    wait_for_previous();                                                                                                            \
    rope_write_body<PAIRS>(state, row, position, qkv, rope, cache, h);                                                              \
  }
ROPE_WRITE(rope_write_1, 1, 4)
ROPE_WRITE(rope_write_2, 2, 3)
ROPE_WRITE(rope_write_4, 4, 2)

// Heads of D elements, all of them rotated. What a token needs comes from memory in a chain, and it is little: so a block is small, that nine of
// them stand on a multiprocessor, and all that depends on nothing else is under way before the first of it is used. A lane holds four adjacent
// pairs of a head, D / 8 lanes the head.
#define WHOLE_THREADS 128
#define WHOLE_AHEAD 3  // heads of a lane under way
#define WHOLE_PIECES 4  // 16-byte pieces of the residual, the same
template <int D>
__device__ __forceinline__ void rope_write_whole_body(const State& state, const int* row, const int* position, Element* qkv, const Rope& rope, const Cache& cache, const Heads& h) {
  constexpr int LANES = D / 8, HALF = D / 2, HEADS = WHOLE_THREADS / LANES;
  __shared__ __align__(16) float sines[HALF], cosines[HALF];
  __shared__ float partial[WHOLE_THREADS / 32];
  const int m = blockIdx.x, all = h.heads + 2 * h.kv_heads, rotated = h.heads + h.kv_heads;
  const int first = threadIdx.x % LANES * 4, own = threadIdx.x / LANES;
  // Staged before the step.
  const int at = position[m], table = row[m];
  const float frequency = threadIdx.x < HALF ? rope.inverse_frequencies[threadIdx.x] : 0.f;
  wait_for_previous();
  Element* token = qkv + (u64)m * all * D + first;
  uint2 lo[WHOLE_AHEAD], hi[WHOLE_AHEAD];
  auto load = [&](int i, int head) {
    lo[i] = hi[i] = make_uint2(0, 0);
    if (head >= all) return;
    lo[i] = __ldcg(reinterpret_cast<const uint2*>(token + head * D));
    hi[i] = __ldcg(reinterpret_cast<const uint2*>(token + head * D + HALF));
  };
#pragma unroll
  for (int i = 0; i < WHOLE_AHEAD; i++) load(i, own + i * HEADS);
  const uint4* residual = reinterpret_cast<const uint4*>(rope.residual + (u64)m * rope.width);
  const int pieces = rope.residual ? rope.width / 8 : 0;
  uint4 piece[WHOLE_PIECES];
  auto load_pieces = [&](int from) {
#pragma unroll
    for (int j = 0; j < WHOLE_PIECES; j++) {
      const int i = from + j * WHOLE_THREADS + threadIdx.x;
      piece[j] = i < pieces ? __ldcg(residual + i) : make_uint4(0, 0, 0, 0);
    }
  };
  load_pieces(0);
  const u64 slot = slot_of(blocks_of(state, table), at, cache.block_size);
  if (threadIdx.x < HALF) {
    float sine, cosine;
    sincosf(at * frequency, &sine, &cosine);
    sines[threadIdx.x] = sine * h.magnitude;
    cosines[threadIdx.x] = cosine * h.magnitude;
  }
  float squares = 0.f;
  for (int from = 0;;) {
#pragma unroll
    for (int j = 0; j < WHOLE_PIECES; j++) squares = add_squares(squares, piece[j]);
    from += WHOLE_PIECES * WHOLE_THREADS;
    if (from >= pieces) break;
    load_pieces(from);
  }
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = squares;
  __syncthreads();
  float factor = 1.f;
  if (rope.residual) {
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < WHOLE_THREADS / 32; i++) total += partial[i];
    factor = rsqrtf(total / rope.width + rope.norm_epsilon);
  }
  // Four adjacent values at this lane's pairs.
  auto four = [&](const float* from, float (&v)[4]) {
    const float4 loaded = *reinterpret_cast<const float4*>(from + first);
    v[0] = loaded.x; v[1] = loaded.y; v[2] = loaded.z; v[3] = loaded.w;
  };
  for (int begin = own; begin - own < all; begin += WHOLE_AHEAD * HEADS) {
#pragma unroll
    for (int i = 0; i < WHOLE_AHEAD; i++) {
      const int head = begin + i * HEADS;
      const bool is_value = head >= rotated;
      const uint2 raw_lo = lo[i], raw_hi = hi[i];
      load(i, head + WHOLE_AHEAD * HEADS);
      float low[4] = {unpack_pair(raw_lo.x).x, unpack_pair(raw_lo.x).y, unpack_pair(raw_lo.y).x, unpack_pair(raw_lo.y).y};
      float high[4] = {unpack_pair(raw_hi.x).x, unpack_pair(raw_hi.x).y, unpack_pair(raw_hi.y).x, unpack_pair(raw_hi.y).y};
#pragma unroll
      for (int j = 0; j < 4; j++) { low[j] *= factor; high[j] *= factor; }
      if (rope.bias && head < all) {
        float bias_low[4], bias_high[4];
        four(rope.bias + head * D, bias_low);
        four(rope.bias + head * D + HALF, bias_high);
#pragma unroll
        for (int j = 0; j < 4; j++) { low[j] += bias_low[j]; high[j] += bias_high[j]; }
      }
      if (rope.q_norm) {  // and k_norm
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < 4; j++) sum += low[j] * low[j] + high[j] * high[j];
#pragma unroll
        for (int d = 1; d < LANES; d <<= 1) sum += __shfl_xor_sync(~0u, sum, d);
        if (!is_value) {
          const float scale = rsqrtf(sum / D + rope.epsilon);
          const float* norm = head < h.heads ? rope.q_norm : rope.k_norm;
          float norm_low[4], norm_high[4];
          four(norm, norm_low);
          four(norm + HALF, norm_high);
#pragma unroll
          for (int j = 0; j < 4; j++) { low[j] *= scale * norm_low[j]; high[j] *= scale * norm_high[j]; }
        }
      }
      if (!is_value) {
        float sine[4], cosine[4];
        four(sines, sine);
        four(cosines, cosine);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float turned = low[j] * cosine[j] - high[j] * sine[j];
          high[j] = high[j] * cosine[j] + low[j] * sine[j];
          low[j] = turned;
        }
      }
      if (head < all) {
        Element* to = token + head * D;
        if (head >= h.heads) to = (is_value ? cache.values : cache.keys) + (slot * h.kv_heads + head - (is_value ? rotated : h.heads)) * D + first;
        *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair(low[0], low[1]), pack_pair(low[2], low[3]));
        *reinterpret_cast<uint2*>(to + HALF) = make_uint2(pack_pair(high[0], high[1]), pack_pair(high[2], high[3]));
      }
    }
  }
}
#define ROPE_WRITE_WHOLE(NAME, D)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(WHOLE_THREADS, 8) NAME(State state, const Counts* counts, const int* row, const int* position, Element* qkv, Rope rope, Cache cache, Heads h) { \
    let_next_start();                                                                                                               \
    if (counts && blockIdx.x < counts->decodes) return;                                                                             \
    rope_write_whole_body<D>(state, row, position, qkv, rope, cache, h);                                                            \
  }
ROPE_WRITE_WHOLE(rope_write_64, 64)
ROPE_WRITE_WHOLE(rope_write_128, 128)
