// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "shplb/step_planner.h"

namespace shplb::sample {

/// Integers only, so that every compiler and library draws the same numbers.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::int64_t Below(std::int64_t bound) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(bound));
  }
  /// Heavy-tailed, in [1, 2^bits).
  std::int64_t Skewed(int bits) { return 1 + Below(std::int64_t{1} << (1 + Below(bits))); }

 private:
  std::mt19937_64 engine_;
};

/// Owns what a StepPlannerConfig only views.
struct Model {
  std::vector<std::int32_t> keep_pages;
  std::vector<std::int32_t> slot_groups;
  StepPlannerConfig config;
};

/// A valid model whose heads keep 1/1024 to 1/2 of the visible pages; with `replicated`, group 0
/// has a second copy on the last rank.
inline Model MakeModel(std::int64_t layers, std::int64_t groups, std::int64_t group_size,
                       std::int64_t ranks, std::int64_t max_pages, bool replicated,
                       std::uint64_t seed) {
  Random random(seed);
  Model model;
  StepPlannerConfig& c = model.config;
  c.num_layers = layers;
  c.num_qo_heads = groups * group_size;
  c.num_kv_heads = groups;
  c.max_pages = max_pages;
  c.num_ranks = ranks;
  c.num_slots = (groups + (replicated ? 1 : 0)) / ranks;
  for (std::int64_t head = 0; head < layers * c.num_qo_heads; ++head) {
    const std::int64_t per_mille = random.Skewed(9);
    for (std::int64_t n = 0; n <= max_pages; ++n) {
      const std::int64_t pages = std::max<std::int64_t>((n * per_mille + 1023) / 1024, 4);
      model.keep_pages.push_back(static_cast<std::int32_t>(std::min(pages, n)));
    }
  }
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    for (std::int64_t group = 0; group < groups; ++group) {
      model.slot_groups.push_back(static_cast<std::int32_t>((group + layer) % groups));
    }
    if (replicated) model.slot_groups.push_back(static_cast<std::int32_t>(layer % groups));
  }
  c.keep_pages = model.keep_pages;
  c.slot_groups = model.slot_groups;
  return model;
}

/// FNV-1a over anything trivially copyable.
class Digest {
 public:
  template <class T>
  void Add(const T* values, std::size_t count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values);
    for (std::size_t i = 0; i < count * sizeof(T); ++i) hash_ = (hash_ ^ bytes[i]) * 1099511628211u;
  }
  template <class T>
  void Add(const std::vector<T>& values) {
    Add(values.data(), values.size());
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 14695981039346656037u;
};

}  // namespace shplb::sample
