// The choice of tokens on the device, as powertrain-sampling defines it: bias, held-back tokens and penalties, the lowest surviving logit, then
// a Gumbel-max draw on Philox words keyed by (seed, position, token), and log-probabilities of the raw logits.
#include "best.cuh"

// What happens with a row's logits; per sampled row. The low bits say who chooses, the others what comes with it; from bit 8 on stands
// how many of the likeliest tokens are reported.
enum { ROW_UNUSED = 0, ROW_GREEDY = 1, ROW_DRAW = 2, ROW_HOST = 3, ROW_KIND = 0xf, ROW_ADJUST = 0x10, ROW_COUNTS = 0x20, ROW_FRESH = 0x40, ROW_LOGPROBS = 0x80 };
#define DAMAGED 0xffffffffu

// The token follows at position + 1: into the row's token table for the next step, and to the host.
__device__ __forceinline__ void deliver(const State& state, int row, int position, u32 token, u32* result, int place) {
  if (token != DAMAGED && position + 1 < state.max_len) state.words[(u64)row * state.max_len + position + 1] = token;
  result[place] = token;
}
__device__ __forceinline__ u32* result_of(const u32* header) { return *reinterpret_cast<u32* const*>(header + 2); }
// Where changed logits go, [samples][vocab]. Through the header, since a captured graph may be older than they are.
__device__ __forceinline__ float* adjusted_of(const u32* header) { return *reinterpret_cast<float* const*>(header + 6); }

// How often a token was generated, and whether the prompt holds it. Generated ones saturate at 32767.
#define IN_PROMPT 0x8000u
__device__ __forceinline__ void count_token(u32* pairs, u32 token, bool in_prompt) {
  const int shift = (token & 1) * 16;
  u32 seen, now = pairs[token / 2];
  do {
    seen = now;
    const u32 count = seen >> shift & 0xffffu;
    const u32 next = in_prompt ? count | IN_PROMPT : (count & 0x7fffu) < 0x7fffu ? count + 1 : count;
    now = atomicCAS(pairs + token / 2, seen, (seen & ~(0xffffu << shift)) | next << shift);
  } while (now != seen);
}

// Rows with bias, held-back tokens or penalties: their logits, changed, go to `adjusted`. The raw ones stay for log-probabilities. Each step of
// f32 is rounded as the scalar sampler's, so nothing may be contracted.
//
// Grid (splits, rows). A block has a range of the vocabulary with its counts, so none waits for another: it counts the row's newest token, or all of
// them when the row is new. Moves vocab * 8 bytes a row, and vocab * 2 of counts.
extern "C" __global__ void __launch_bounds__(256) adjust_logits(State state, const u32* header, const int* mode, const int* row, const int* position, const float* logits, int vocab) {
  let_next_start();
  wait_for_previous();
  const int s = blockIdx.y, what = mode[s];
  if (!(what & ROW_ADJUST)) return;
  const u32* parameters = state.words + state.sampling_at + (u64)row[s] * SAMPLING_WORDS;
  const int per = ((vocab + gridDim.x - 1) / gridDim.x + 3) / 4 * 4, begin = blockIdx.x * per, end = min(vocab, begin + per);
  const int at = position[s], prompt = parameters[6];
  auto mine = [&](u32 token) { return token < (u32)vocab && (int)token >= begin && (int)token < end; };
  u32* pairs = nullptr;
  if (what & ROW_COUNTS) {
    pairs = reinterpret_cast<u32*>((u64)parameters[11] << 32 | parameters[10]);
    const u32* tokens = tokens_of(state, row[s]);
    if (what & ROW_FRESH) {
      // Ranges begin at multiples of 4: no pair of counts belongs to two blocks.
      for (int i = begin / 2 + threadIdx.x; i < (end + 1) / 2; i += 256) pairs[i] = 0;
      __syncthreads();
      for (int t = threadIdx.x; t <= at; t += 256)
        if (mine(tokens[t])) count_token(pairs, tokens[t], t < prompt);
    } else if (threadIdx.x == 0 && mine(tokens[at])) {
      count_token(pairs, tokens[at], false);
    }
    __syncthreads();
  }
  const float repetition = __uint_as_float(parameters[7]), frequency = __uint_as_float(parameters[8]), presence = __uint_as_float(parameters[9]);
  auto penalised = [&](float x, int i) {
    const u32 count = __ldcg(pairs + i / 2) >> (i & 1) * 16 & 0xffffu, generated = count & 0x7fffu;
    if (count) x = x > 0.f ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition);
    if (generated) x = __fsub_rn(x, __fadd_rn(__fmul_rn(frequency, (float)generated), presence));
    return x;
  };
  const float* from = logits + (u64)s * vocab;
  float* to = adjusted_of(header) + (u64)s * vocab;
  const u32 biased = parameters[13], held_back = (u32)(at + 1 - prompt) < parameters[15] ? parameters[14] : 0;
  if (biased + held_back == 0) {
    for (int i = begin + threadIdx.x; i < end; i += 256) to[i] = pairs ? penalised(from[i], i) : from[i];
    return;
  }
  for (int i = begin + threadIdx.x; i < end; i += 256) to[i] = from[i];
  __syncthreads();
  const u32* list = state.words + parameters[12];
  for (u32 i = threadIdx.x; i < biased; i += 256) {
    // Sorted by token: the first of equal ones adds them all, in their order.
    const u32 token = list[2 * i];
    if (!mine(token) || (i > 0 && list[2 * i - 2] == token)) continue;
    float x = to[token];
    for (u32 j = i; j < biased && list[2 * j] == token; j++) x = __fadd_rn(x, __uint_as_float(list[2 * j + 1]));
    to[token] = x;
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < held_back; i += 256) {
    const u32 token = list[2 * biased + i];
    // NaN and +inf stay, to be found as damage.
    if (mine(token) && to[token] < INFINITY) to[token] = -INFINITY;
  }
  if (!pairs) return;
  __syncthreads();
  for (int i = begin + threadIdx.x; i < end; i += 256) to[i] = penalised(to[i], i);
}

// The token of what is highest; DAMAGED where nothing is finite, or something NaN or +inf.
__device__ __forceinline__ u32 token_of(u64 best) { return best == BAD || of_key((u32)(best >> 32)) == -INFINITY ? DAMAGED : ~(u32)best; }

// The highest logit of each row, its lowest token among equals; NaN and +inf make it DAMAGED. Greedy rows are delivered.
// Grid (splits, rows); the last block of a row finishes it. `best` and `arrivals` start at zero and are left so.
// Reads vocab * 4 bytes a row.
extern "C" __global__ void __launch_bounds__(256) choose_greedy(State state, const u32* header, const int* mode, const int* row, const int* position, const float* logits, u64* best, u32* arrivals,
                                                                float* highest, u32* likeliest, int vocab) {
  __shared__ u64 warp_best[8];
  let_next_start();
  wait_for_previous();
  const int s = blockIdx.y, what = mode[s], kind = what & ROW_KIND;
  if (kind == ROW_UNUSED || kind == ROW_HOST) return;
  const float* z = (what & ROW_ADJUST ? adjusted_of(header) : logits) + (u64)s * vocab;
  const int per = ((vocab + gridDim.x - 1) / gridDim.x + 3) / 4 * 4, begin = blockIdx.x * per, end = min(vocab, begin + per);
  u64 mine = 0;
  auto take = [&](float x, int i) {
    const u64 packed = pack_best(x, i);
    if (packed > mine) mine = packed;
  };
  if (vocab % 4 == 0) {
#pragma unroll 4
    for (int i = begin + threadIdx.x * 4; i < end; i += 1024) {
      const float4 v = *reinterpret_cast<const float4*>(z + i);
      take(v.x, i); take(v.y, i + 1); take(v.z, i + 2); take(v.w, i + 3);
    }
  } else {
    for (int i = begin + threadIdx.x; i < end; i += 256) take(z[i], i);
  }
#pragma unroll
  for (int d = 16; d; d >>= 1) {
    const u64 other = __shfl_xor_sync(~0u, mine, d);
    if (other > mine) mine = other;
  }
  if ((threadIdx.x & 31) == 0) warp_best[threadIdx.x >> 5] = mine;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < 8; w++)
    if (warp_best[w] > mine) mine = warp_best[w];
  atomicMax(best + s, mine);
  __threadfence();
  if (atomicAdd(arrivals + s, 1) != gridDim.x - 1) return;
  __threadfence();
  const u64 won = atomicExch(best + s, 0ull);
  arrivals[s] = 0;
  const u32 token = token_of(won);
  highest[s] = token == DAMAGED ? -INFINITY : of_key((u32)(won >> 32));
  likeliest[s] = token;
  if (kind == ROW_GREEDY || token == DAMAGED) deliver(state, row[s], position[s], token, result_of(header), s);
}

// Delivers what best.cu found of steps whose rows are all greedy; `best` is left at zero. A thread a row.
extern "C" __global__ void __launch_bounds__(128) deliver_best(State state, const u32* header, const int* mode, const int* row, const int* position, u64* best, int samples) {
  let_next_start();
  wait_for_previous();
  const int s = blockIdx.x * 128 + threadIdx.x;
  if (s >= samples) return;
  const u64 won = best[s];
  best[s] = 0;
  if ((mode[s] & ROW_KIND) == ROW_GREEDY) deliver(state, row[s], position[s], token_of(won), result_of(header), s);
}

__device__ __forceinline__ void philox(u32 block, u32 position, u32 k0, u32 k1, u32 (&out)[4]) {
  u32 c0 = block, c1 = position, c2 = 0, c3 = 0;
#pragma unroll
  for (int r = 0; r < 10; r++) {
    const u32 h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0, h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0; c1 = l1; c2 = h0 ^ c3 ^ k1; c3 = l0;
    k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
  }
  out[0] = c0; out[1] = c1; out[2] = c2; out[3] = c3;
}

#define DRAW_THREADS 1024
#define FAN 15  // thresholds tried in one pass: four bits of the key

// Per threshold, the count (or the probability mass) of logits at or above it; the same sum in every thread.
template <bool MASS>
__device__ __forceinline__ void measure(const float* z, int vocab, const u32 (&threshold)[FAN], u32 floor, float max, float inverse_temperature, double (&total)[FAN], double (*shared)[FAN]) {
  float sum[FAN] = {};
  for (int i = threadIdx.x; i < vocab; i += DRAW_THREADS) {
    const float x = z[i];
    const u32 key = key_of(x);
    if (key < floor) continue;
    const float w = MASS ? __expf((x - max) * inverse_temperature) : 1.f;
#pragma unroll
    for (int f = 0; f < FAN; f++) sum[f] += key >= threshold[f] ? w : 0.f;
  }
  __syncthreads();
#pragma unroll
  for (int f = 0; f < FAN; f++) {
    double s = sum[f];
#pragma unroll
    for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(~0u, s, d);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5][f] = s;
  }
  __syncthreads();
#pragma unroll
  for (int f = 0; f < FAN; f++) {
    double s = 0;
    for (int w = 0; w < DRAW_THREADS / 32; w++) s += shared[w][f];
    total[f] = s;
  }
}

// The highest key such that what lies at or above it measures at least `wanted`: eight passes, four bits each.
template <bool MASS>
__device__ __forceinline__ u32 search(const float* z, int vocab, u32 floor, double wanted, float max, float inverse_temperature, double (*shared)[FAN]) {
  u32 found = 0;
  for (int shift = 28; shift >= 0; shift -= 4) {
    u32 threshold[FAN];
    double total[FAN];
#pragma unroll
    for (int f = 0; f < FAN; f++) threshold[f] = found + ((u32)(f + 1) << shift);
    measure<MASS>(z, vocab, threshold, floor, max, inverse_temperature, total, shared);
    u32 step = 0;
#pragma unroll
    for (int f = 0; f < FAN; f++) if (total[f] >= wanted) step = f + 1;
    found += step << shift;
  }
  return found;
}

// Rows that draw: top-k, top-p and min-p as one lowest key, then the highest score. One block a row; 2 to 18 passes over vocab * 4 bytes in L2.
extern "C" __global__ void __launch_bounds__(DRAW_THREADS) choose_drawn(State state, const u32* header, const int* mode, const int* row, const int* position, const float* logits, const float* highest,
                                                                        u32* likeliest, int vocab) {
  __shared__ double shared[DRAW_THREADS / 32][FAN];
  __shared__ double warp_score[DRAW_THREADS / 32];
  __shared__ u32 warp_token[DRAW_THREADS / 32];
  let_next_start();
  wait_for_previous();
  const int s = blockIdx.x;
  if ((mode[s] & ROW_KIND) != ROW_DRAW || likeliest[s] == DAMAGED) return;
  const float* z = (mode[s] & ROW_ADJUST ? adjusted_of(header) : logits) + (u64)s * vocab;
  const u32* parameters = state.words + state.sampling_at + (u64)row[s] * SAMPLING_WORDS;
  const float temperature = __uint_as_float(parameters[0]), top_p = __uint_as_float(parameters[2]), min_p = __uint_as_float(parameters[3]);
  const u32 top_k = parameters[1], k0 = parameters[4], k1 = parameters[5], at = position[s] + 1;
  const float max = highest[s], inverse_temperature = 1.f / temperature;
  u32 floor = key_of(-3.402823466e38f);
  if (top_k > 0 && top_k < (u32)vocab) {
    const u32 found = search<false>(z, vocab, floor, top_k, max, inverse_temperature, shared);
    if (found > floor) floor = found;
  }
  if (top_p < 1.f) {
    const u32 everything[FAN] = {};
    double total[FAN];
    measure<true>(z, vocab, everything, floor, max, inverse_temperature, total, shared);
    const u32 found = search<true>(z, vocab, floor, (double)top_p * total[0], max, inverse_temperature, shared);
    if (found > floor) floor = found;
  }
  if (min_p > 0.f) {
    const double exact = (double)max + (double)temperature * log((double)min_p);
    const u32 found = key_of(__double2float_ru(exact));
    if (found > floor) floor = found;
  }
  if (floor > key_of(max)) floor = key_of(max);

  u32 words[4];
  auto score = [&](float x, u32 word) {
    const double w = (word + 0.5) / 4294967296.0;
    return (double)x / (double)temperature - log(-log1p(-w));
  };
  u32 token = likeliest[s];
  philox(token / 4, at, k0, k1, words);
  double best = score(max, words[token % 4]);
  float reach = __double2float_rd(best);
  for (int block = threadIdx.x; block * 4 < vocab; block += DRAW_THREADS) {
    float x[4];
    bool any = false;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[j] = block * 4 + j < vocab ? z[block * 4 + j] : -INFINITY;
      // No Gumbel number exceeds 22.9; the slack covers rounding.
      const float scaled = x[j] * inverse_temperature;
      any |= key_of(x[j]) >= floor && !(scaled + 23.f + 1e-3f + 1e-6f * fabsf(scaled) < reach);
    }
    if (!any) continue;
    philox(block, at, k0, k1, words);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (block * 4 + j >= vocab || key_of(x[j]) < floor) continue;
      const float scaled = x[j] * inverse_temperature;
      // gumbel <= -ln(w), by the exponent of w alone.
      const float bound = (__clz(words[j]) + 1) * 0.69314718f;
      if (scaled + bound + 1e-3f + 1e-6f * fabsf(scaled) < reach) continue;
      const double candidate = score(x[j], words[j]);
      const u32 id = block * 4 + j;
      if (candidate > best || (candidate == best && id < token)) { best = candidate; token = id; reach = __double2float_rd(best); }
    }
  }
#pragma unroll
  for (int d = 16; d; d >>= 1) {
    const double other = __shfl_xor_sync(~0u, best, d);
    const u32 id = __shfl_xor_sync(~0u, token, d);
    if (other > best || (other == best && id < token)) { best = other; token = id; }
  }
  if ((threadIdx.x & 31) == 0) { warp_score[threadIdx.x >> 5] = best; warp_token[threadIdx.x >> 5] = token; }
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < DRAW_THREADS / 32; w++)
    if (warp_score[w] > best || (warp_score[w] == best && warp_token[w] < token)) { best = warp_score[w]; token = warp_token[w]; }
  likeliest[s] = token;
  deliver(state, row[s], position[s], token, result_of(header), s);
}

#define SCORE_THREADS 1024
#define TOP_MAX 20
#define RECORD_WORDS 48  // log-probability, rank, then pairs of token and log-probability

// Rows that report log-probabilities: of the chosen token, its rank, and of the likeliest; all of the raw logits, in a record for the host.
//
// The n-th highest of the threads' own highest bounds the n-th highest of all from below, so few logits pass it. One block a row, 2 passes over
// vocab * 4 bytes.
extern "C" __global__ void __launch_bounds__(SCORE_THREADS) score_chosen(const u32* header, const int* mode, const float* logits, const u32* chosen, int vocab) {
  __shared__ u64 candidate[SCORE_THREADS];
  __shared__ double warp_sum_of[SCORE_THREADS / 32];
  __shared__ u64 warp_best[SCORE_THREADS / 32];
  __shared__ u32 found, above;
  let_next_start();
  wait_for_previous();
  const int s = blockIdx.x, what = mode[s], kind = what & ROW_KIND;
  if (!(what & ROW_LOGPROBS) || kind == ROW_UNUSED || kind == ROW_HOST || chosen[s] == DAMAGED) return;
  const float* z = logits + (u64)s * vocab;
  u32* record = *reinterpret_cast<u32* const*>(header + 4) + (u64)s * RECORD_WORDS;
  const int top = min(what >> 8, TOP_MAX), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const float own = z[chosen[s]];
  if (threadIdx.x == 0) found = above = 0;
  u32 mine = 0;
  for (int i = threadIdx.x; i < vocab; i += SCORE_THREADS) mine = max(mine, key_of(z[i]));
  u32 threshold = 0, highest = 0;
  for (int bit = 31; bit >= 0; bit--) {
    if (__syncthreads_or(mine >= (highest | 1u << bit))) highest |= 1u << bit;
    if (top && __syncthreads_count(mine >= (threshold | 1u << bit)) >= top) threshold |= 1u << bit;
  }
  const float max = of_key(highest);
  float part = 0.f;
  u32 more = 0;
  for (int i = threadIdx.x; i < vocab; i += SCORE_THREADS) {
    const float x = z[i];
    part += expf(x - max);
    more += x > own;
    if (top && key_of(x) >= threshold) {
      const u32 place = atomicAdd(&found, 1);
      if (place < SCORE_THREADS) candidate[place] = (u64)key_of(x) << 32 | (u32)~i;
    }
  }
  double sum = part;
#pragma unroll
  for (int d = 16; d; d >>= 1) { sum += __shfl_xor_sync(~0u, sum, d); more += __shfl_xor_sync(~0u, more, d); }
  if (lane == 0) { warp_sum_of[warp] = sum; atomicAdd(&above, more); }
  __syncthreads();
  sum = 0;
  for (int w = 0; w < SCORE_THREADS / 32; w++) sum += warp_sum_of[w];
  const double log_sum = (double)max + log(sum);
  auto report = [&](int place, u64 packed) {
    record[2 + 2 * place] = ~(u32)packed;
    record[3 + 2 * place] = __float_as_uint((float)((double)of_key((u32)(packed >> 32)) - log_sum));
  };
  if (threadIdx.x == 0) { record[0] = __float_as_uint((float)((double)own - log_sum)); record[1] = above + 1; }
  if (found <= SCORE_THREADS) {
    if (threadIdx.x >= found) return;
    int place = 0;
    for (u32 j = 0; j < found; j++) place += candidate[j] > candidate[threadIdx.x];
    if (place < top) report(place, candidate[threadIdx.x]);
    return;
  }
  // Very many equal logits: one after another.
  u64 last = ~0ull;
  for (int place = 0; place < top; place++) {
    u64 best = 0;
    for (int i = threadIdx.x; i < vocab; i += SCORE_THREADS) {
      const u64 packed = (u64)key_of(z[i]) << 32 | (u32)~i;
      if (packed < last && packed > best) best = packed;
    }
#pragma unroll
    for (int d = 16; d; d >>= 1) { const u64 other = __shfl_xor_sync(~0u, best, d); if (other > best) best = other; }
    __syncthreads();
    if (lane == 0) warp_best[warp] = best;
    __syncthreads();
    for (int w = 0; w < SCORE_THREADS / 32; w++) if (warp_best[w] > best) best = warp_best[w];
    last = best;
    if (threadIdx.x == 0) report(place, best);
  }
}
