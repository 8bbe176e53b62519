// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace shplb {

/// Tokens of one page of the KV pool, the unit of sparsity on the key side.
inline constexpr std::int64_t kPageTokens = 64;

/// GPU time of attention work. Whole nanoseconds, so that every rank and compiler decides alike.
/// Defaults are measured on an H200 (bf16, head_dim 128, 32 query and 8 KV heads, dense by fa3).
struct CostModel {
  std::int64_t item_ns = 4189;           // per work item on one CTA, whatever its length
  std::int64_t kv_tile_ns = 1528;        // per KV tile of an item on one CTA
  std::int64_t dense_kv_tile_ns = 1409;  // the same in the stock kernel, which also splits over KV
  // Page selection, whole GPU, ps: per (query head, block, visible page), per (query head, block),
  // and per (KV head, page) of a request's whole context, whose keys are pooled.
  std::int64_t select_pair_ps = 47;
  std::int64_t select_block_ps = 20'892;
  std::int64_t pool_page_ps = 7'822;
  std::int64_t layer_ns = 42'105;  // per layer: launches that a dense layer does not have
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
