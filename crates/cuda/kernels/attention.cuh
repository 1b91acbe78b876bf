// What the attention kernels share: the paged cache, the shape of the heads, tiles of queries.
#pragma once
#include "common.cuh"

// One layer's place in the cache: [blocks][block_size][kv_heads][head_dim] for keys, and the same for values.
struct Cache {
  Element* keys;
  Element* values;
  int block_size;
  int kv_heads;
};
struct Heads {
  int heads, kv_heads, head_dim, rotary;  // rotary: elements rotated, pairs i and i + rotary / 2
  int window;                             // positions seen, 0 for all
  float scale, softcap, magnitude;        // softcap 0 is none
};

__device__ __forceinline__ u64 slot_of(const int* blocks, int position, int block_size) {
  return (u64)blocks[position / block_size] * block_size + position % block_size;
}

// Queries of one sequence that one block of flash.cu takes.
struct Tile {
  int row;       // whose block table
  int token;     // the first query's place in the step
  int position;  // its position
  int queries;   // at most 128
};

__device__ __forceinline__ float cap_score(float s, float softcap) { return softcap > 0.f ? softcap * tanhf(s / softcap) : s; }
