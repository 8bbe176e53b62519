// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "replica_layer.h"

namespace shplb::internal {

namespace {

/// Evaluations of one layer's local search; far above what up to 64 slots take.
constexpr std::int64_t kMaxTrials = 100'000;

/// Steepest descent over exchanges of two seats.
class Descent {
 public:
  Descent(ReplicaLayer* layer, std::int64_t bound) : layer_(layer), bound_(bound) {}

  std::int64_t Run() {
    best_ = layer_->Evaluate();
    while (best_ > bound_ && trials_ < kMaxTrials) {
      found_ = false;
      const auto units = layer_->seat.size();
      for (std::size_t i = 0; i < units; ++i) {
        for (std::size_t j = 0; j < units; ++j) {
          if (i < j) TrySwaps(i, j);
          if (layer_->seat[i].copied() && !layer_->seat[j].copied()) TryTrades(i, j);
        }
      }
      if (!found_) break;
      layer_->seat[change_[0]] = seats_[0];
      layer_->seat[change_[1]] = seats_[1];
    }
    return layer_->Evaluate();
  }

 private:
  /// One slot of i for one of j.
  void TrySwaps(std::size_t i, std::size_t j) {
    const Seat a = layer_->seat[i];
    const Seat b = layer_->seat[j];
    for (const int x : {0, 1}) {
      for (const int y : {0, 1}) {
        if (a.rank[x] < 0 || b.rank[y] < 0 || a.on(b.rank[y]) || b.on(a.rank[x])) continue;
        Seat to_a = a;
        Seat to_b = b;
        std::swap(to_a.rank[x], to_b.rank[y]);
        Try(i, to_a, j, to_b);
      }
    }
  }

  /// i gives one of its two slots to j, which has one.
  void TryTrades(std::size_t i, std::size_t j) {
    const Seat a = layer_->seat[i];
    const Seat b = layer_->seat[j];
    for (const int x : {0, 1}) {
      if (b.on(a.rank[x])) continue;
      Try(i, Seat{{a.rank[1 - x], -1}}, j, Seat{{b.rank[0], a.rank[x]}});
    }
  }

  void Try(std::size_t i, const Seat& to_a, std::size_t j, const Seat& to_b) {
    const Seat a = layer_->seat[i];
    const Seat b = layer_->seat[j];
    layer_->seat[i] = to_a;
    layer_->seat[j] = to_b;
    const std::int64_t largest = layer_->Evaluate();
    layer_->seat[i] = a;
    layer_->seat[j] = b;
    ++trials_;
    if (largest >= best_) return;
    best_ = largest;
    found_ = true;
    change_[0] = i;
    change_[1] = j;
    seats_[0] = to_a;
    seats_[1] = to_b;
  }

  ReplicaLayer* layer_;
  std::int64_t bound_;
  std::int64_t best_ = 0;
  std::int64_t trials_ = 0;
  bool found_ = false;
  std::size_t change_[2] = {0, 0};
  Seat seats_[2];
};

/// Depth-first over units in descending order; ranks that hold nothing yet are interchangeable.
class BranchAndBound {
 public:
  BranchAndBound(ReplicaLayer* layer, std::int64_t bound, std::int64_t max_nodes)
      : layer_(layer), bound_(bound), nodes_left_(max_nodes), best_seat_(layer->seat) {
    best_ = layer->Evaluate();
    room_.assign(static_cast<std::size_t>(layer->num_ranks), layer->num_slots);
    copies_left_ = layer->num_copied;
  }

  bool Run() {
    Descend(0);
    layer_->seat = best_seat_;
    layer_->Evaluate();
    return nodes_left_ >= 0;
  }

 private:
  bool Done() const { return best_ <= bound_ || nodes_left_ < 0; }

  void Descend(std::size_t unit) {
    if (unit == layer_->seat.size()) {
      best_ = layer_->Evaluate();
      best_seat_ = layer_->seat;
      return;
    }
    const auto units_left = static_cast<std::int64_t>(layer_->seat.size() - unit);
    const auto ranks = static_cast<std::int32_t>(layer_->num_ranks);
    for (std::int32_t r = 0; r < ranks && copies_left_ > 0; ++r) {
      if (room_[r] == 0) continue;
      for (std::int32_t s = r + 1; s < ranks; ++s) {
        if (room_[s] > 0) Visit(unit, Seat{{r, s}});
        if (Done()) return;
        if (room_[s] == layer_->num_slots) break;
      }
      if (room_[r] == layer_->num_slots) break;
    }
    for (std::int32_t r = 0; r < ranks && copies_left_ < units_left; ++r) {
      if (room_[r] > 0) Visit(unit, Seat{{r, -1}});
      if (Done()) return;
      if (room_[r] == layer_->num_slots) break;
    }
  }

  void Visit(std::size_t unit, const Seat& seat) {
    if (--nodes_left_ < 0) return;
    layer_->seat[unit] = seat;
    // More units never make the largest load smaller.
    if (layer_->Evaluate(unit + 1) >= best_) return;
    Take(seat, 1);
    Descend(unit + 1);
    Take(seat, -1);
  }

  void Take(const Seat& seat, std::int64_t count) {
    room_[seat.rank[0]] -= count;
    if (!seat.copied()) return;
    room_[seat.rank[1]] -= count;
    copies_left_ -= count;
  }

  ReplicaLayer* layer_;
  std::int64_t bound_;
  std::int64_t nodes_left_;
  std::int64_t best_ = 0;
  std::int64_t copies_left_ = 0;
  std::vector<std::int64_t> room_;  // [num_ranks]
  std::vector<Seat> best_seat_;
};

}  // namespace

std::int64_t ImproveReplicas(ReplicaLayer* layer, std::int64_t bound) {
  return Descent(layer, bound).Run();
}

bool SearchReplicas(ReplicaLayer* layer, std::int64_t bound, std::int64_t max_nodes) {
  return BranchAndBound(layer, bound, max_nodes).Run();
}

}  // namespace shplb::internal
