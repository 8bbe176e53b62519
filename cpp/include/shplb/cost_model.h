// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace shplb {

/// Tokens of one page of the KV pool, the unit of sparsity on the key side.
inline constexpr std::int64_t kPageTokens = 64;

/// GPU time of attention work. Whole nanoseconds, so that every rank and compiler decides alike.
/// Defaults are measured on an H200 (bf16, head_dim 128).
struct CostModel {
  std::int64_t item_ns = 640;            // per work item on one CTA, whatever its length
  std::int64_t kv_tile_ns = 1530;        // per KV tile of an item on one CTA
  std::int64_t dense_kv_tile_ns = 1442;  // the same in the stock kernel, which also splits over KV
  std::int64_t select_pair_ps = 119;     // page selection: per (list, visible page), whole GPU, ps
  std::int64_t layer_ns = 20'000;        // per layer for having a sparse path at all
};

/// Largest accepted rate; keeps every sum below in int64.
inline constexpr std::int64_t kMaxRate = 100'000;

/// Tiles of FlashInfer's sm90 paged prefill kernel (head_dim 64, 128 or 256).
struct TileShape {
  std::int64_t query_rows;
  std::int64_t kv_tokens;
};

/// Throws InvalidArgument for another head_dim.
TileShape TileShapeOf(std::int64_t head_dim);

/// Throws InvalidArgument for a negative or absurd rate.
void Validate(const CostModel& cost);

}  // namespace shplb
