// What turns projections into queries, keys and values, a warp a head: shared by rope.cu and the decode kernels, which make their own.
#pragma once
#include "attention.cuh"

// What turns a projection into a query, key or value: the norm's factor where the product left it out, bias, norm per head, rotation. Null
// where there is none.
struct Rope {
  const float* bias;                 // [heads + 2 kv_heads][head_dim]
  const float* q_norm;               // [head_dim]
  const float* k_norm;               // [head_dim]
  const float* inverse_frequencies;  // [rotary / 2]
  const Element* residual;              // [tokens][width]: whose norm's factor the projections lack
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

__device__ __forceinline__ float load_float(const float* from) { return *from; }
// By its bits: the loads of the elements' own headers are not ordered behind what is waited for.
__device__ __forceinline__ float load_float(const Element* from) {
  const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(from));
  return to_float(*reinterpret_cast<const Element*>(&bits));
}

// N adjacent aligned elements (1, 2 or 4) in one load or store. Loads pass the first-level cache by: where decodes run beside prompts
// (attention.cu) it may hold what an earlier layer left at the place.
template <int N>
__device__ __forceinline__ void load_adjacent(const Element* from, float (&v)[N]) {
  if constexpr (N == 1) v[0] = load_float(from);
  else {
    u32 pairs[N / 2];
    if constexpr (N == 4) *reinterpret_cast<uint2*>(pairs) = __ldcg(reinterpret_cast<const uint2*>(from));
    else pairs[0] = __ldcg(reinterpret_cast<const u32*>(from));
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = j & 1 ? unpack_pair(pairs[j / 2]).y : unpack_pair(pairs[j / 2]).x;
  }
}
template <int N>
__device__ __forceinline__ void load_adjacent(const float* from, float (&v)[N]) {
#pragma unroll
  for (int j = 0; j < N; j++) v[j] = from[j];
}
template <int N>
__device__ __forceinline__ void store_adjacent(Element* to, const float (&v)[N]) {
  if constexpr (N == 1) *to = to_element(v[0]);
  else if constexpr (N == 2) *reinterpret_cast<u32*>(to) = pack_pair(v[0], v[1]);
  else *reinterpret_cast<uint2*>(to) = make_uint2(pack_pair(v[0], v[1]), pack_pair(v[2], v[3]));
}

// A lane's elements of one head as they were projected (or of its bias): PAIRS adjacent rotated pairs, and what lies past the rotary dimension,
// of which a model with it has no more than 32 * PAIRS.
template <int PAIRS>
struct Projected {
  float lo[PAIRS], hi[PAIRS], tail[PAIRS];
};
template <int PAIRS, class T>
__device__ __forceinline__ void load_head(const Heads& h, const T* from, Projected<PAIRS>& v) {
  const int lane = threadIdx.x & 31, half = h.rotary / 2, rest = h.head_dim - h.rotary, first = PAIRS * lane;
  const bool whole = half % PAIRS == 0 && h.head_dim % PAIRS == 0;
#pragma unroll
  for (int j = 0; j < PAIRS; j++) v.lo[j] = v.hi[j] = v.tail[j] = 0.f;
  if (whole && first < half) {
    load_adjacent<PAIRS>(from + first, v.lo);
    load_adjacent<PAIRS>(from + half + first, v.hi);
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    if (!whole && first + j < half) {
      v.lo[j] = load_float(from + first + j);
      v.hi[j] = load_float(from + half + first + j);
    }
    if (first + j < rest) v.tail[j] = load_float(from + h.rotary + first + j);
  }
}

// One head of one token by one warp: factor of the norm, bias, norm of the head, rotation; to `to`. `head` counts queries, then keys, then values.
template <int PAIRS>
__device__ __forceinline__ void finish_head(const Rope& rope, const Heads& h, Projected<PAIRS>& v, const Projected<PAIRS>& bias, Element* to, int head, float factor, const float (&sine)[PAIRS],
                                            const float (&cosine)[PAIRS]) {
  const int lane = threadIdx.x & 31, half = h.rotary / 2, rest = h.head_dim - h.rotary, first = PAIRS * lane;
  const bool is_value = head >= h.heads + h.kv_heads;
  const bool whole = half % PAIRS == 0 && h.head_dim % PAIRS == 0;
  const float* norm = is_value ? nullptr : head < h.heads ? rope.q_norm : rope.k_norm;
  float squares = 0.f;
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    v.lo[j] = v.lo[j] * factor + bias.lo[j];
    v.hi[j] = v.hi[j] * factor + bias.hi[j];
    v.tail[j] = v.tail[j] * factor + bias.tail[j];
    squares += v.lo[j] * v.lo[j] + v.hi[j] * v.hi[j] + v.tail[j] * v.tail[j];
  }
  if (norm) {
    const float scale = rsqrtf(warp_sum(squares) / h.head_dim + rope.epsilon);
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      const int pair = first + j;
      if (pair < half) { v.lo[j] *= scale * norm[pair]; v.hi[j] *= scale * norm[pair + half]; }
      if (pair < rest) v.tail[j] *= scale * norm[h.rotary + pair];
    }
  }
  float turned_lo[PAIRS], turned_hi[PAIRS];
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const float s = is_value ? 0.f : sine[j], c = is_value ? 1.f : cosine[j];
    turned_lo[j] = v.lo[j] * c - v.hi[j] * s;
    turned_hi[j] = v.hi[j] * c + v.lo[j] * s;
  }
  if (whole && first < half) {
    store_adjacent<PAIRS>(to + first, turned_lo);
    store_adjacent<PAIRS>(to + half + first, turned_hi);
  }
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int pair = first + j;
    if (!whole && pair < half) {
      to[pair] = to_element(turned_lo[j]);
      to[pair + half] = to_element(turned_hi[j]);
    }
    if (pair < rest) to[h.rotary + pair] = to_element(v.tail[j]);
  }
}
template <int PAIRS>
__device__ __forceinline__ void load_bias(const Rope& rope, const Heads& h, int head, Projected<PAIRS>& v) {
  if (rope.bias) load_head<PAIRS>(h, rope.bias + head * h.head_dim, v);
  else {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) v.lo[j] = v.hi[j] = v.tail[j] = 0.f;
  }
}
