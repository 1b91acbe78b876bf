// What every kernel shares: element type, tensor-core product, streaming loads, programmatic dependent launch, the state arena.
#pragma once
// Weights, activations and the cache are of one type of 16 bits, as the file is compiled: bf16, or f16 where ELEMENT_F16 is defined.
#ifdef ELEMENT_F16
#include <cuda_fp16.h>
typedef __half Element;
typedef __half2 ElementPair;
#define ELEMENT "f16"
__device__ __forceinline__ float to_float(Element v) { return __half2float(v); }
// What f16 cannot hold becomes NaN, which reaches the logits and has the row refused: an infinite key could have a score of -inf, and be passed
// over. h + 0 h: infinite times zero is NaN.
__device__ __forceinline__ Element to_element(float v) {
  const Element h = __float2half_rn(v);
  return __hfma(h, __ushort_as_half(0), h);
}
__device__ __forceinline__ ElementPair to_pair(float lo, float hi) {
  const ElementPair h = __floats2half2_rn(lo, hi);
  return __hfma2(h, __half2half2(__ushort_as_half(0)), h);
}
__device__ __forceinline__ float2 to_floats(ElementPair v) { return __half22float2(v); }
#else
#include <cuda_bf16.h>
typedef __nv_bfloat16 Element;
typedef __nv_bfloat162 ElementPair;
#define ELEMENT "bf16"
__device__ __forceinline__ float to_float(Element v) { return __bfloat162float(v); }
__device__ __forceinline__ Element to_element(float v) { return __float2bfloat16(v); }
__device__ __forceinline__ ElementPair to_pair(float lo, float hi) { return __floats2bfloat162_rn(lo, hi); }
__device__ __forceinline__ float2 to_floats(ElementPair v) { return __bfloat1622float2(v); }
#endif
typedef unsigned int u32;
typedef unsigned long long u64;

// Programmatic dependent launch. Rule: every kernel calls `wait_for_previous` in every block before it reads what another kernel
// wrote or writes anything, so that "the previous kernel is complete" means all before it are. The exceptions are in docs/dev/cuda.md ("Invariants").
__device__ __forceinline__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// c[16x8] += a[16x16] . b[16x8], elements in, f32 out. Lane = g * 4 + q: c[0..1] is row g, columns 2q..2q+1; c[2..3] row g + 8.
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32." ELEMENT "." ELEMENT ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes that are read once: kept out of L1.
__device__ __forceinline__ uint4 load_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3},[%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// A load that stands where it is written: neither behind a branch that does not need it nor behind another that is waited for.
__device__ __forceinline__ int load_now(const int* p) {
  int v;
  asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

__device__ __forceinline__ u32 pack_pair(float lo, float hi) {
  ElementPair pair = to_pair(lo, hi);
  return *reinterpret_cast<u32*>(&pair);
}
__device__ __forceinline__ float2 unpack_pair(u32 pair) { return to_floats(*reinterpret_cast<ElementPair*>(&pair)); }

// 2^x in one instruction; 0 for what would be denormal.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(~0u, v, d);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int d = 16; d; d >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
  return v;
}

// `sum` and the squares of eight elements.
__device__ __forceinline__ float add_squares(float sum, const uint4& v) {
  const u32* pairs = reinterpret_cast<const u32*>(&v);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 f = unpack_pair(pairs[j]);
    sum += f.x * f.x + f.y * f.y;
  }
  return sum;
}

// The factor of an RMS norm for one row of `width` elements (a multiple of 8), by all threads of the block. `partial`: a float a warp.
__device__ __forceinline__ float norm_factor(const Element* row, int width, float epsilon, float* partial) {
  float squares = 0.f;
#pragma unroll 4
  for (int i = threadIdx.x; i < width / 8; i += blockDim.x) squares = add_squares(squares, __ldcg(reinterpret_cast<const uint4*>(row) + i));
  squares = warp_sum(squares);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = squares;
  __syncthreads();
  float total = 0.f;
  for (int i = 0; i < (int)(blockDim.x >> 5); i++) total += partial[i];
  return rsqrtf(total / width + epsilon);
}

// x * sigmoid(x), or GELU by its tanh approximation.
__device__ __forceinline__ float activate(float x, int gelu) {
  if (gelu) return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
  return __fdividef(x, 1.f + __expf(-x));
}

// What becomes of a product (`Output` of src/product.rs): stored, added to the residual, activation(gate) * up, f32 logits.
enum { OUT_STORE = 0, OUT_RESIDUAL = 1, OUT_GATED = 2, OUT_LOGITS = 3 };

// The device's memory of the running sequences, one array of words (src/state.rs lays it out): the token table
// [rows][max_len], the block tables [rows][max_blocks], the sampling parameters [rows][SAMPLING_WORDS].
struct State {
  u32* words;
  u64 blocks_at;    // first word of the block tables
  u64 sampling_at;  // first word of the sampling parameters
  int max_len;
  int max_blocks;
};
// temperature, top_k, top_p, min_p, seed low, seed high, length of the prompt, repetition, frequency and presence penalty, address of the token counts
// low, high, first word of the lists, biased tokens there, held-back tokens there, min_tokens
#define SAMPLING_WORDS 16

// What a step holds beside its arrays' sizes (src/staging.rs), so that a captured graph serves steps that differ in it: its first positions that
// are decodes, and its tiles of prompts.
struct Counts {
  int decodes, tiles;
};

__device__ __forceinline__ const u32* tokens_of(const State& s, int row) { return s.words + (u64)row * s.max_len; }
__device__ __forceinline__ const int* blocks_of(const State& s, int row) {
  return reinterpret_cast<const int*>(s.words + s.blocks_at) + (u64)row * s.max_blocks;
}
