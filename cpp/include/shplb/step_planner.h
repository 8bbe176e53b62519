// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "shplb/cost_model.h"
#include "shplb/work_plan.h"

namespace shplb {

/// kAuto: per request, whichever is predicted to end sooner; a single new token, which decodes,
/// stays on the stock path.
enum class StepMode { kAuto, kSparse, kDense };

/// Speed of a rank: work that it gets done against what the cost model predicts, in 2^-10.
inline constexpr std::int64_t kNominalSpeed = 1024;
/// A quarter slower and faster; keeps every product below in int64.
inline constexpr std::int64_t kLeastSpeed = 768;
inline constexpr std::int64_t kMostSpeed = 1280;

/// What stays the same from step to step. Spans are only read by the constructor.
struct StepPlannerConfig {
  std::int64_t num_layers = 0;
  std::int64_t num_qo_heads = 0;  // of the whole model
  std::int64_t num_kv_heads = 0;  // of the whole model; divides num_qo_heads
  std::int64_t head_dim = 128;
  std::int64_t max_pages = 0;  // visible pages of the longest request
  /// [num_layers, num_qo_heads, max_pages + 1], logical heads: pages a query block may keep when it
  /// sees n pages. 0 at n = 0, otherwise in [1, n].
  std::span<const std::int32_t> keep_pages;
  std::int64_t num_ranks = 1;
  std::int64_t num_slots = 0;  // KV groups per rank
  /// [num_layers, num_ranks, num_slots]: logical KV group in each slot. A group may be on two ranks
  /// (a replica); every group is on at least one.
  std::span<const std::int32_t> slot_groups;
  std::int64_t rank = 0;         // whose work plan is written
  std::int64_t sink_pages = 1;   // always kept, as are the diagonal pages
  std::int64_t local_pages = 1;  // pages before the diagonal ones, always kept
  bool shared_lists = false;     // one list per KV group (the longest of its heads), not per head
  std::int64_t num_ctas = 132;
  std::int64_t num_threads = 1;  // that plan layers, the caller's counted in; at most 64
  CostModel cost;
};

/// Plan of one step. Vectors keep their capacity from call to call.
///
/// Query blocks are cut at absolute multiples of the query tile in each request, and numbered
/// through the sparse requests in batch order. List j * num_blocks + b belongs to block b of this
/// rank's query head j (KV slot j under shared_lists).
struct StepPlan {
  std::vector<std::uint8_t> sparse;  // [num_requests], 0: this request belongs to the stock path
  std::int64_t num_blocks = 0;       // of the sparse requests
  std::int64_t num_lists = 0;        // per layer
  std::int64_t num_items = 0;        // per layer, at most: a replica's lists have items on one rank
  std::int64_t num_bytes = 0;        // of the buffer that are in use
  // Byte offsets of int32 arrays that all layers share.
  std::int64_t block_request_offset = 0;    // [num_blocks], index into the batch
  std::int64_t block_first_row_offset = 0;  // [num_blocks], position in the request
  std::int64_t block_qo_indptr_offset = 0;  // [num_blocks], row of q
  std::int64_t block_qo_len_offset = 0;     // [num_blocks], rows
  // Per layer.
  std::vector<std::int64_t> plan_info;  // [num_layers, 9], see PlanInfo
  std::vector<std::int64_t>
      list_indptr_offset;                     // [num_layers], bytes; int32 [num_lists + 1], pages
  std::vector<std::int64_t> list_pages;       // [num_layers], sum of list lengths
  std::vector<std::int64_t> cta_makespan_ns;  // [num_layers], this rank's as scheduled
  /// [num_layers, num_ranks], predicted for all ranks at their speeds.
  std::vector<std::int64_t> rank_makespan_ns;
  /// [num_layers, list heads, 2]: blocks [first, end) that this rank computes: all, or a part where
  /// the group has a replica. Lists of other blocks are empty and have no work item.
  std::vector<std::int32_t> owned_blocks;
  // Predicted at nominal speed.
  std::int64_t step_ns = 0;   // attention time of this step as planned, all layers
  std::int64_t dense_ns = 0;  // the same with every request on the stock path
};

/// Plans prefill steps on the CPU before the GPU starts them. Equal configuration and batch give
/// equal decisions on every rank. Plan() uses scratch memory: one planner per calling
/// thread.
class StepPlanner {
 public:
  explicit StepPlanner(const StepPlannerConfig& config);
  ~StepPlanner();
  StepPlanner(StepPlanner&&) noexcept;
  StepPlanner& operator=(StepPlanner&&) noexcept;

  std::int64_t num_layers() const;
  std::int64_t num_ranks() const;
  /// Of this rank: query heads, or KV slots under shared lists.
  std::int64_t num_list_heads() const;

  /// How fast ranks are from the next step on, [num_ranks], within [kLeastSpeed, kMostSpeed].
  /// Moves replicas' work between their ranks and corrects rank_makespan_ns. Nothing else: which
  /// requests run sparse, and over which pages, is decided at nominal speed.
  void SetRankSpeeds(std::span<const std::int64_t> speeds);

  /// Bytes that suffice for any step of up to this many requests and new tokens.
  std::int64_t BufferBytes(std::int64_t num_requests, std::int64_t num_new_tokens) const;

  /// Request i has prefix_lens[i] cached tokens and new_lens[i] >= 1 new ones, which are the next
  /// rows of q. It belongs to the stock path whatever the mode where stock[i] is not 0; an empty
  /// `stock` leaves all to the mode. Writes all layers' tables into `buffer` (16-byte aligned).
  /// Allocates nothing once it has seen a step of this size. O(layers * query heads * blocks).
  void Plan(std::span<const std::int64_t> prefix_lens, std::span<const std::int64_t> new_lens,
            StepMode mode, std::span<std::byte> buffer, StepPlan* plan,
            std::span<const std::uint8_t> stock = {});

  /// Predictions of Plan() alone: sparse, owned_blocks, rank_makespan_ns, step_ns, dense_ns,
  /// num_blocks. O(layers * ranks * (requests + blocks)).
  void Predict(std::span<const std::int64_t> prefix_lens, std::span<const std::int64_t> new_lens,
               StepMode mode, StepPlan* plan, std::span<const std::uint8_t> stock = {});

  /// Summed CTA time (ns) of sparse decoding, one new token per request after kv_lens[i] >= 0
  /// cached ones, into `loads` [num_layers, num_ranks]; a replica's work counts half on each rank.
  /// O(layers * ranks * requests).
  void DecodeLoads(std::span<const std::int64_t> kv_lens, std::span<std::int64_t> loads);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shplb
