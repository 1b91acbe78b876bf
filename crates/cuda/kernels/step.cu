// The step's bookkeeping on the device: table changes, embedding, norms, gathering of the rows to sample, dummy weights.
#include "common.cuh"

// Applies the staged table changes. `ops` holds `count` triples (first word in the arena, words, first word in `ops`); one warp each.
extern "C" __global__ void apply_changes(State state, const u32* header) {
  let_next_start();
  wait_for_previous();
  const u32 count = header[0];
  const u32* ops = header + header[1];
  const u32 warps = gridDim.x * (blockDim.x / 32), lane = threadIdx.x & 31;
  for (u32 i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; i < count; i += warps) {
    const u32 to = ops[3 * i], words = ops[3 * i + 1], from = ops[3 * i + 2];
    for (u32 w = lane; w < words; w += 32) state.words[(u64)to + w] = ops[from + w];
  }
}

// residual[m] = embedding[token] * scale. One block a token; width is a multiple of 8.
//
// The kernels after it start only when `apply_changes` is done: they may read the tables, and the cache of earlier steps, before they
// wait for the kernel in front of them.
extern "C" __global__ void embed(State state, const int* row, const int* position, const Element* table, Element* residual, int width, float scale, u32 vocab) {
  wait_for_previous();
  let_next_start();
  const int m = blockIdx.x;
  u32 token = tokens_of(state, row[m])[position[m]];
  if (token >= vocab) token = 0;  // a token that failed to be sampled; its row's result is discarded
  const uint4* from = reinterpret_cast<const uint4*>(table + (u64)token * width);
  uint4* to = reinterpret_cast<uint4*>(residual + (u64)m * width);
  for (int i = threadIdx.x; i < width / 8; i += blockDim.x) {
    uint4 v = from[i];
    if (scale != 1.f) {
      u32* pairs = reinterpret_cast<u32*>(&v);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float2 f = unpack_pair(pairs[j]);
        pairs[j] = pack_pair(f.x * scale, f.y * scale);
      }
    }
    to[i] = v;
  }
}

__device__ __forceinline__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
  __syncthreads();
  float total = 0.f;
  for (int i = 0; i < (int)(blockDim.x >> 5); i++) total += shared[i];
  return total;
}

// If `delta`: residual[m] += (post_weight ? rmsnorm(delta[m]) * post_weight : delta[m]).
// Then, if `out`: out[m] = rmsnorm(residual[from[m]]) * weight (null: 1); `from` (may be null) picks rows, then delta must be null.
// One block a row, held in registers: 8 elements a thread and chunk. Moves 2 to 4 rows of bf16; bound by memory.
template <int NORM_CHUNKS>
__device__ __forceinline__ void add_norm_body(Element* residual, const Element* delta, const float* post_weight, float post_epsilon, const float* weight, float epsilon, Element* out, const int* from, int width) {
  __shared__ float shared[32];
  let_next_start();
  wait_for_previous();
  const u64 source = from ? from[blockIdx.x] : blockIdx.x;
  Element* res = residual + source * width;
  const int chunks = width / 8;
  float x[NORM_CHUNKS][8];
#pragma unroll
  for (int c = 0; c < NORM_CHUNKS; c++) {
    const int i = threadIdx.x + c * blockDim.x;
    uint4 v = i < chunks ? reinterpret_cast<const uint4*>(res)[i] : make_uint4(0, 0, 0, 0);
    const u32* pairs = reinterpret_cast<const u32*>(&v);
#pragma unroll
    for (int j = 0; j < 4; j++) { float2 f = unpack_pair(pairs[j]); x[c][2 * j] = f.x; x[c][2 * j + 1] = f.y; }
  }
  if (delta) {
    const Element* del = delta + (u64)blockIdx.x * width;
    float d[NORM_CHUNKS][8], squares = 0.f;
#pragma unroll
    for (int c = 0; c < NORM_CHUNKS; c++) {
      const int i = threadIdx.x + c * blockDim.x;
      uint4 v = i < chunks ? reinterpret_cast<const uint4*>(del)[i] : make_uint4(0, 0, 0, 0);
      const u32* pairs = reinterpret_cast<const u32*>(&v);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float2 f = unpack_pair(pairs[j]);
        d[c][2 * j] = f.x; d[c][2 * j + 1] = f.y;
        squares += f.x * f.x + f.y * f.y;
      }
    }
    const float scale = post_weight ? rsqrtf(block_sum(squares, shared) / width + post_epsilon) : 1.f;
#pragma unroll
    for (int c = 0; c < NORM_CHUNKS; c++) {
      const int i = threadIdx.x + c * blockDim.x;
      if (i >= chunks) continue;
      uint4 v;
      u32* pairs = reinterpret_cast<u32*>(&v);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        x[c][j] += post_weight ? d[c][j] * scale * post_weight[i * 8 + j] : d[c][j];
        x[c][j] = to_float(to_element(x[c][j]));
      }
#pragma unroll
      for (int j = 0; j < 4; j++) pairs[j] = pack_pair(x[c][2 * j], x[c][2 * j + 1]);
      reinterpret_cast<uint4*>(res)[i] = v;
    }
  }
  if (!out) return;
  float squares = 0.f;
#pragma unroll
  for (int c = 0; c < NORM_CHUNKS; c++)
#pragma unroll
    for (int j = 0; j < 8; j++) squares += x[c][j] * x[c][j];
  const float scale = rsqrtf(block_sum(squares, shared) / width + epsilon);
#pragma unroll
  for (int c = 0; c < NORM_CHUNKS; c++) {
    const int i = threadIdx.x + c * blockDim.x;
    if (i >= chunks) continue;
    const float4 one = make_float4(1.f, 1.f, 1.f, 1.f);
    const float4 w0 = weight ? reinterpret_cast<const float4*>(weight)[i * 2] : one, w1 = weight ? reinterpret_cast<const float4*>(weight)[i * 2 + 1] : one;
    uint4 v;
    v.x = pack_pair(x[c][0] * scale * w0.x, x[c][1] * scale * w0.y);
    v.y = pack_pair(x[c][2] * scale * w0.z, x[c][3] * scale * w0.w);
    v.z = pack_pair(x[c][4] * scale * w1.x, x[c][5] * scale * w1.y);
    v.w = pack_pair(x[c][6] * scale * w1.z, x[c][7] * scale * w1.w);
    reinterpret_cast<uint4*>(out + (u64)blockIdx.x * width)[i] = v;
  }
}

#define ADD_NORM(NAME, CHUNKS)                                                                                                                              \
  extern "C" __global__ void __launch_bounds__(512) NAME(Element* residual, const Element* delta, const float* post_weight, float post_epsilon,                   \
                                                         const float* weight, float epsilon, Element* out, const int* from, int width) {                       \
    add_norm_body<CHUNKS>(residual, delta, post_weight, post_epsilon, weight, epsilon, out, from, width);                                                   \
  }
ADD_NORM(add_norm_4096, 1)
ADD_NORM(add_norm_16384, 4)

// factors[m] = 1 / rms(x[m]), for a product that applies it to its result. One warp a row; reads M * width * 2 bytes; bound by memory.
extern "C" __global__ void norm_factors(const Element* x, float* factors, int rows, int width, float epsilon) {
  let_next_start();
  wait_for_previous();
  const int m = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (m >= rows) return;
  const uint4* row = reinterpret_cast<const uint4*>(x + (u64)m * width);
  float squares = 0.f;
#pragma unroll 8
  for (int i = lane; i < width / 8; i += 32) {
    const uint4 v = row[i];
    const u32* pairs = reinterpret_cast<const u32*>(&v);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 f = unpack_pair(pairs[j]);
      squares += f.x * f.x + f.y * f.y;
    }
  }
  squares = warp_sum(squares);
  if (lane == 0) factors[m] = rsqrtf(squares / width + epsilon);
}

// residual_out[i] = residual[rows[i]], attended_out[i] = attended[rows[i]]: what the last layer goes on with. One block a row and array; widths are
// multiples of 8.
extern "C" __global__ void take_rows(const int* rows, const Element* residual, Element* residual_out, int width, const Element* attended, Element* attended_out, int attended_width) {
  let_next_start();
  wait_for_previous();
  const bool second = blockIdx.y == 1;
  const int elements = second ? attended_width : width;
  const uint4* from = reinterpret_cast<const uint4*>((second ? attended : residual) + (u64)rows[blockIdx.x] * elements);
  uint4* to = reinterpret_cast<uint4*>((second ? attended_out : residual_out) + (u64)blockIdx.x * elements);
  for (int i = threadIdx.x; i < elements / 8; i += blockDim.x) to[i] = from[i];
}

// residual[m] += bias: an output projection's bias where the product has no epilogue for it.
extern "C" __global__ void add_bias(Element* residual, const float* bias, int width) {
  let_next_start();
  wait_for_previous();
  Element* res = residual + (u64)blockIdx.x * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) res[i] = to_element(to_float(res[i]) + bias[i]);
}

// out[m, i] = activation(gate) * up. Gate and up rows alternate by eight (src/weights.rs), so 16 columns hold 8 of each. Where `residual`
// [M, residual_width] is not null, both still lack the factor of its norm.
extern "C" __global__ void gated_activation(const Element* gate_up, Element* out, int width, int gelu, const Element* residual, int residual_width, float epsilon) {
  __shared__ float partial[32];
  let_next_start();
  wait_for_previous();
  const float factor = residual ? norm_factor(residual + (u64)blockIdx.y * residual_width, residual_width, epsilon, partial) : 1.f;
  for (int group = blockIdx.x * blockDim.x + threadIdx.x; group < width / 8; group += gridDim.x * blockDim.x) {
    const uint4* from = reinterpret_cast<const uint4*>(gate_up + (u64)blockIdx.y * 2 * width) + group * 2;
    const uint4 gate = from[0], up = from[1];
    uint4 v;
    const u32 *g = reinterpret_cast<const u32*>(&gate), *u = reinterpret_cast<const u32*>(&up);
    u32* o = reinterpret_cast<u32*>(&v);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float2 a = unpack_pair(g[j]), b = unpack_pair(u[j]);
      o[j] = pack_pair(activate(a.x * factor, gelu) * b.x * factor, activate(a.y * factor, gelu) * b.y * factor);
    }
    reinterpret_cast<uint4*>(out + (u64)blockIdx.y * width)[group] = v;
  }
}

// logit = cap * tanh(logit / cap)
extern "C" __global__ void softcap_logits(float* logits, u64 count, float cap) {
  let_next_start();
  wait_for_previous();
  for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) logits[i] = cap * tanhf(logits[i] / cap);
}

// Random weights of a given standard deviation (uniform), the same for the same seed. Bound by write bandwidth.
extern "C" __global__ void fill_random(Element* to, u64 count, float half_width, u32 seed) {
  for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    u32 x = (u32)i * 2654435761u + seed * 40503u + (u32)(i >> 32) * 97u;
    x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; x ^= x >> 16;
    to[i] = to_element(((x & 0xffff) / 32768.f - 1.f) * half_width);
  }
}
