// Many queries of one sequence over the paged cache: flash attention with warpgroup products (Shah et al., FlashAttention-3, arXiv:2407.08608).
//
// 4 * queries * keys * head_dim operations a head, half of it under the causal mask; bound by the tensor cores and, beside them, by the
// exponentials (one for 4 * head_dim operations). An item is a tile of 128 queries of one head; a block stays for every gridDim.x-th, longest
// first. One warp copies queries, and keys and values 128 at a time in boxes of 16 positions (a block of the cache is a multiple of 16),
// through rings of two, so that the next item's are there when this one ends; two warpgroups take 64 queries each. A warpgroup
// issues S' = Q K' for the next keys, be they the next item's, before O += P V for these, and computes the softmax of S' while the latter
// runs; the two warpgroups take turns in issuing, so that one's softmax runs beside the other's products. Keys go from the last to the
// first: the masked tiles come first.
#include "attention.cuh"
#include "hopper.cuh"

#define TILE_QUERIES 128
#define TILE_KEYS 128
#define HALF_BYTES (128 * 128)  // 128 rows of 64 elements
#define STAGES 2

template <int D>
struct Values;
template <>
struct Values<128> {
  static __device__ __forceinline__ void multiply(float (&o)[64], const u32 (&p)[4], u64 v) { multiply_registers_128(o, p, v); }
};
template <>
struct Values<64> {
  static __device__ __forceinline__ void multiply(float (&o)[32], const u32 (&p)[4], u64 v) { multiply_registers_64(o, p, v); }
};

// What the parts of a block share: where its rings and barriers are.
template <int D>
struct Place {
  static constexpr int HALVES = D / 64, TILE_BYTES = HALVES * HALF_BYTES;
  // Queries lie in shared memory as HALVES matrices of 128 rows of 64 elements. Of keys and values each eight rows lie together, half after half: so
  // one copy brings all elements of 16 positions.
  static constexpr int EIGHT_BYTES = HALVES * 1024;
  u32 queries, keys, values;                                      // STAGES tiles each
  u32 q_full, q_empty, k_full, k_empty, v_full, v_empty;  // STAGES barriers each
  __device__ Place(const void* shared, const u64* barriers) {
    queries = (shared_address(shared) + 1023) & ~1023u;
    keys = queries + STAGES * TILE_BYTES;
    values = keys + STAGES * TILE_BYTES;
    q_full = shared_address(barriers);
    q_empty = q_full + 8 * STAGES;
    k_full = q_empty + 8 * STAGES;
    k_empty = k_full + 8 * STAGES;
    v_full = k_empty + 8 * STAGES;
    v_empty = v_full + 8 * STAGES;
  }
};

// One tile of queries of one head, and which tiles of keys it sees: [begin, end).
struct Work {
  Tile tile;
  int head, last, begin, end;
  __device__ Work(const Tile& of, int item, const Heads& h) : tile(of), head(item % h.heads) {
    last = tile.position + tile.queries - 1;
    begin = h.window ? max(0, tile.position - h.window + 1) / TILE_KEYS : 0;
    end = last / TILE_KEYS + 1;
  }
};

// The block's items: those of one round after another, every other round backwards. Items come longest first, so that each block's add up to
// about the same.
__device__ __forceinline__ int item_of(int turn) { return turn * gridDim.x + (turn & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x); }

// The copying warp: queries of every item, keys and values of every tile of keys, as the rings become free.
template <int D>
__device__ __forceinline__ void copy_all(const Place<D>& at, const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map, const State& state, const Tile* tiles, int items, int block_size,
                                         const Heads& h) {
  constexpr int HALVES = D / 64, TILE_BYTES = HALVES * HALF_BYTES, BOX_BYTES = 2 * Place<D>::EIGHT_BYTES;
  const int lane = threadIdx.x & 31, box = lane;
  // Sixteen positions a box; none past the last query's.
  auto boxes_of = [&](const Work& work, int n) { return min(TILE_KEYS / 16, (work.last - n * TILE_KEYS) / 16 + 1); };
  auto slot_in = [&](const Work& work, int n) {
    return box < boxes_of(work, n) ? (int)slot_of(blocks_of(state, work.tile.row), n * TILE_KEYS + box * 16, block_size) : 0;
  };
  // Tiles and block tables are staged before the step. What is to be looked up for the next item and the next tile of keys is under way while
  // this one waits for room.
  int item = item_of(0);
  Work work(tiles[item / h.heads], item, h), next = work;
  int slot = slot_in(work, work.end - 1);
  wait_for_previous();
  // Only now: decodes beside it (attention.cu) take for granted that all before this kernel is done.
  let_next_start();
  for (int turn = 0, round = 0; item < items; turn++) {  // round: tiles of keys copied
    const int next_item = item_of(turn + 1), hk = work.head / (h.heads / h.kv_heads);
    const int q_stage = turn % STAGES;
    barrier_wait(at.q_empty + 8 * q_stage, (turn / STAGES & 1) ^ 1);
    if (lane == 0) barrier_expect(at.q_full + 8 * q_stage, TILE_BYTES);
    __syncwarp();
    if (lane < HALVES) load_box_3d(q_map, at.queries + q_stage * TILE_BYTES + lane * HALF_BYTES, at.q_full + 8 * q_stage, lane * 64, work.head, work.tile.token);
    for (int n = work.end - 1; n >= work.begin; n--, round++) {
      const int stage = round % STAGES, boxes = boxes_of(work, n), at_slot = slot;
      const u32 parity = (round / STAGES & 1) ^ 1;
      const u32 offset = stage * TILE_BYTES + box * BOX_BYTES;
      barrier_wait(at.k_empty + 8 * stage, parity);
      if (lane == 0) barrier_expect(at.k_full + 8 * stage, boxes * BOX_BYTES);
      __syncwarp();
      if (box < boxes) load_box_5d(k_map, at.keys + offset, at.k_full + 8 * stage, 0, 0, 0, at_slot / 8, hk);
      if (n == work.end - 1) next = Work(tiles[min(next_item, items - 1) / h.heads], next_item, h);
      slot = n > work.begin ? slot_in(work, n - 1) : slot_in(next, next.end - 1);
      barrier_wait(at.v_empty + 8 * stage, parity);
      if (lane == 0) barrier_expect(at.v_full + 8 * stage, boxes * BOX_BYTES);
      __syncwarp();
      if (box < boxes) load_box_5d(v_map, at.values + offset, at.v_full + 8 * stage, 0, 0, 0, at_slot / 8, hk);
    }
    work = next;
    item = next_item;
  }
}

// A warpgroup's 64 queries of every item of the block, as one stream of tiles of keys: the first scores of an item are issued before the last
// values of the item in front of it are multiplied, so that the tensor cores have work across the border.
template <int D>
__device__ __forceinline__ void attend_all(const Place<D>& at, const Tile* tiles, int items, Element* out, const Heads& h) {
  constexpr int HALVES = D / 64, TILE_BYTES = HALVES * HALF_BYTES, EIGHT_BYTES = Place<D>::EIGHT_BYTES;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7, g = lane >> 2, q = lane & 3;
  const int first_row = group * 64 + (warp & 3) * 16;  // of this warp's 16 queries
  const float scale_log2 = h.softcap > 0.f ? 1.4426950408889634f : h.scale * 1.4426950408889634f;
  float s[64], o[D / 2], top[2] = {-1e30f, -1e30f}, sum[2] = {0.f, 0.f}, shrink[2];
  u32 p[TILE_KEYS / 16][4];
#pragma unroll
  for (int i = 0; i < 64; i++) s[i] = 0.f;
#pragma unroll
  for (int i = 0; i < D / 2; i++) o[i] = 0.f;

  // `round` counts the block's tiles of keys, `turn` its items.
  auto wait_full = [&](u32 full, int round) { barrier_wait(full + 8 * (round % STAGES), round / STAGES & 1); };
  auto release = [&](u32 empty, int round) {
    if (lane == 0) barrier_arrive(empty + 8 * (round % STAGES));
  };
  auto queries_of = [&](int turn) { return at.queries + turn % STAGES * TILE_BYTES; };
  auto scores = [&](int turn, int round) {  // S = Q K
    const u64 queries = operand_along_k(queries_of(turn) + group * 64 * 128), keys = operand_along_k(at.keys + round % STAGES * TILE_BYTES, EIGHT_BYTES);
    pin(s);
    products_begin();
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
      const int within = c % 4 * 2;
      multiply_128(s, queries + c / 4 * (HALF_BYTES >> 4) + within, keys + c / 4 * (1024 >> 4) + within, c > 0);
    }
    products_commit();
  };
  auto add_values = [&](int round) {  // O += P V
    const u64 values = operand_across_k(at.values + round % STAGES * TILE_BYTES, 1024, EIGHT_BYTES);
    pin(o);
    products_begin();
#pragma unroll
    for (int c = 0; c < TILE_KEYS / 16; c++) Values<D>::multiply(o, p[c], values + c * (2 * EIGHT_BYTES >> 4));
    products_commit();
  };
  // What lies past the last query's position was not copied, or is not ours, and may be NaN: its weight is 0, but 0 * NaN is not 0.
  auto clear_rest = [&](const Work& work, int round) {
    const int filled = work.last + 1 - (work.end - 1) * TILE_KEYS;
    if (filled >= TILE_KEYS) return;
    wait_full(at.v_full, round);
    const u32 values_at = at.values + round % STAGES * TILE_BYTES;
    for (int i = threadIdx.x; i < (TILE_KEYS - filled) * HALVES * 8; i += 256) {
      const int row = filled + i / (HALVES * 8), piece = i % (HALVES * 8);
      asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(values_at + row / 8 * EIGHT_BYTES + piece / 8 * 1024 + row % 8 * 128 + piece % 8 * 16), "r"(0) : "memory");
    }
    shared_writes_to_async();
    named_sync(1, 256);
  };
  // The scores of tile n of the item's keys to weights; says by how much what came before shrinks.
  auto soften = [&](const Work& work, int n) {
    const int first = n * TILE_KEYS;
    if (h.softcap > 0.f) {
#pragma unroll
      for (int e = 0; e < 64; e++) s[e] = cap_score(s[e] * h.scale, h.softcap);
    }
    if (first + TILE_KEYS - 1 > work.tile.position + group * 64 || (h.window && first <= work.last - h.window)) {
#pragma unroll
      for (int e = 0; e < 64; e++) {
        const int key = first + (e >> 2) * 8 + q * 2 + (e & 1), position = work.tile.position + first_row + g + (e >> 1 & 1) * 8;
        if (key > position || (h.window && key <= position - h.window)) s[e] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float x = -1e30f;
#pragma unroll
      for (int j = 0; j < 16; j++) x = fmaxf(x, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
      x = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
      const float now = fmaxf(top[r], x * scale_log2);
      shrink[r] = exp2_fast(top[r] - now);
      top[r] = now;
      float added = 0.f;
#pragma unroll
      for (int j = 0; j < 16; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float& weight = s[4 * j + 2 * r + e];
          weight = exp2_fast(fmaf(weight, scale_log2, -now));
          added += weight;
        }
      sum[r] = sum[r] * shrink[r] + added;
    }
  };
  auto pack = [&] {
#pragma unroll
    for (int c = 0; c < TILE_KEYS / 16; c++)
#pragma unroll
      for (int e = 0; e < 4; e++) p[c][e] = pack_pair(s[8 * c + 2 * e], s[8 * c + 2 * e + 1]);
  };
  // O / sum of an item to `out`, through its queries' memory, whose rows only this warp uses now, so that whole rows are written.
  auto write = [&](const Tile& tile, int head, int turn, float (&total)[2]) {
    const u32 queries_at = queries_of(turn);
    const int r = lane & 15;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      total[e] += __shfl_xor_sync(~0u, total[e], 1);
      total[e] += __shfl_xor_sync(~0u, total[e], 2);
      total[e] = 1.f / total[e];
    }
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
      u32 v[4];
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) v[2 * i + e] = pack_pair(o[4 * (j + i) + 2 * e] * total[e], o[4 * (j + i) + 2 * e + 1] * total[e]);
      const int chunk = j + (lane >> 4);
      store_matrices(queries_at + chunk / 8 * HALF_BYTES + (first_row + r) * 128 + (((chunk & 7) ^ (r & 7)) << 4), v[0], v[1], v[2], v[3]);
    }
    __syncwarp();
    for (int i = lane; i < 16 * (D / 8); i += 32) {
      const int row = i / (D / 8), chunk = i % (D / 8);
      if (first_row + row >= tile.queries) break;
      const uint4 v = load_shared(queries_at + chunk / 8 * HALF_BYTES + (first_row + row) * 128 + (((chunk & 7) ^ (row & 7)) << 4));
      *reinterpret_cast<uint4*>(out + ((u64)(tile.token + first_row + row) * h.heads + head) * D + chunk * 8) = v;
    }
    __syncwarp();
    shared_writes_to_async();
    if (lane == 0) barrier_arrive(at.q_empty + 8 * (turn % STAGES));
  };

  int item = item_of(0), turn = 0, round = 0;  // blocks beyond the items are not here
  Work work(tiles[item / h.heads], item, h);
  wait_for_previous();
  wait_full(at.q_full, 0);
  wait_full(at.k_full, 0);
  scores(0, 0);
  clear_rest(work, 0);
  products_wait<0>();
  pin(s);
  release(at.k_empty, 0);
  soften(work, work.end - 1);
  pack();
  for (;;) {
    item = item_of(turn + 1);
    const Tile ahead = tiles[min(item, items - 1) / h.heads];
    for (int n = work.end - 2; n >= work.begin; n--) {
      round++;
      wait_full(at.k_full, round);
      named_sync(2 + group, 256);
      scores(turn, round);
      wait_full(at.v_full, round - 1);
      add_values(round - 1);
      named_arrive(3 - group, 256);
      products_wait<1>();
      pin(s);
      release(at.k_empty, round);
      soften(work, n);
      products_wait<0>();
      pin(o);
      release(at.v_empty, round - 1);
#pragma unroll
      for (int j = 0; j < D / 2; j++) o[j] *= shrink[j >> 1 & 1];
      pack();
    }
    if (item >= items) break;
    const Tile done = work.tile;
    const int done_head = work.head;
    float total[2] = {sum[0], sum[1]};
    work = Work(ahead, item, h);
    turn++;
    round++;
    wait_full(at.q_full, turn);
    wait_full(at.k_full, round);
    named_sync(2 + group, 256);
    scores(turn, round);
    wait_full(at.v_full, round - 1);
    add_values(round - 1);
    named_arrive(3 - group, 256);
    clear_rest(work, round);
    products_wait<1>();
    pin(s);
    release(at.k_empty, round);
    top[0] = top[1] = -1e30f;
    sum[0] = sum[1] = 0.f;
    soften(work, work.end - 1);
    products_wait<0>();
    pin(o);
    release(at.v_empty, round - 1);
    write(done, done_head, turn - 1, total);
#pragma unroll
    for (int j = 0; j < D / 2; j++) o[j] = 0.f;
    pack();
  }
  wait_full(at.v_full, round);
  add_values(round);
  products_wait<0>();
  pin(o);
  release(at.v_empty, round);
  write(work.tile, work.head, turn, sum);
}

template <int D>
__device__ __forceinline__ void flash_body(const TensorMap& q_map, const TensorMap& k_map, const TensorMap& v_map, const State& state, const Tile* tiles, int items, Element* out, int block_size, const Heads& h) {
  extern __shared__ unsigned char raw[];
  __shared__ __align__(8) u64 barriers[6 * STAGES];
  const Place<D> at(raw, barriers);
  const int group = threadIdx.x >> 7;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(at.q_full + 8 * i, 1);
      barrier_init(at.k_full + 8 * i, 1);
      barrier_init(at.v_full + 8 * i, 1);
      barrier_init(at.q_empty + 8 * i, 8);
      barrier_init(at.k_empty + 8 * i, 8);
      barrier_init(at.v_empty + 8 * i, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (threadIdx.x == 256) {
    prefetch_map(q_map);
    prefetch_map(k_map);
    prefetch_map(v_map);
  }
  __syncthreads();
  if (group == 2) {
    give_registers<24>();
    if (threadIdx.x < 288) copy_all<D>(at, q_map, k_map, v_map, state, tiles, items, block_size, h);
  } else {
    take_registers<240>();
    if (group == 1) named_arrive(2, 256);  // the first turn is the other's
    attend_all<D>(at, tiles, items, out, h);
  }
}
#define FLASH(NAME, D)                                                                                                                                                              \
  extern "C" __global__ void __launch_bounds__(384, 1) NAME(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map, \
                                                            State state, const Counts* counts, const Tile* tiles, Element* out, int block_size, Heads h) {                                     \
    const int items = counts->tiles * h.heads;                                                                                                                                            \
    if (blockIdx.x < items) flash_body<D>(q_map, k_map, v_map, state, tiles, items, out, block_size, h);                                                                                  \
  }
FLASH(flash_64, 64)
FLASH(flash_128, 128)
