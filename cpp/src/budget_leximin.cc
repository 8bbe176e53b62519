// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>

#include "budget_curve.h"

namespace shplb::internal {

namespace {

/// Least density (rounded up to the grid) at which the curve reaches `level`; the density of its
/// maximum if it never does.
std::int64_t DensityFor(const GainCurve& curve, std::int64_t level) {
  const std::int64_t target = std::min(level, curve.back().gain);
  const auto next = std::lower_bound(
      curve.begin(), curve.end(), target,
      [](const CurvePoint& point, std::int64_t value) { return point.gain < value; });
  if (next == curve.begin()) return next->density;
  const CurvePoint& a = *(next - 1);
  const std::int64_t rise = next->gain - a.gain;
  const int128 part = static_cast<int128>(target - a.gain) * (next->density - a.density);
  return a.density + static_cast<std::int64_t>((part + rise - 1) / rise);
}

class WaterFilling {
 public:
  WaterFilling(std::span<const GainCurve> curves, std::int64_t total)
      : curves_(curves), density_(curves.size()), rising_(curves.size()), left_(total) {
    for (std::size_t i = 0; i < curves.size(); ++i) {
      density_[i] = curves[i].front().density;
      left_ -= density_[i];
    }
    std::iota(rising_.begin(), rising_.end(), std::size_t{0});
  }

  std::vector<std::int64_t> Run() {
    while (!rising_.empty()) {
      std::int64_t low = 0;  // reached
      std::int64_t high = kUnit + 1;
      while (high - low > 1) {
        const std::int64_t middle = low + (high - low) / 2;
        (CostOf(middle) <= left_ ? low : high) = middle;
      }
      RaiseTo(low);
      if (low == kUnit) break;
      CrossShortestFirst(low + 1);
    }
    ShareRest();
    return std::move(density_);
  }

 private:
  int128 CostOf(std::int64_t level) const {
    int128 cost = 0;
    for (const std::size_t i : rising_) cost += Step(i, level);
    return cost;
  }

  std::int64_t Step(std::size_t i, std::int64_t level) const {
    return std::max<std::int64_t>(DensityFor(curves_[i], level) - density_[i], 0);
  }

  void RaiseTo(std::int64_t level) {
    for (const std::size_t i : rising_) {
      const std::int64_t step = Step(i, level);
      density_[i] += step;
      left_ -= step;
    }
  }

  /// Not all heads can reach `level`: raise those that need least, and freeze the others, which
  /// can never be raised since what is left only shrinks. Freezes at least one head.
  void CrossShortestFirst(std::int64_t level) {
    std::vector<std::pair<std::int64_t, std::size_t>> steps;
    for (const std::size_t i : rising_) steps.emplace_back(Step(i, level), i);
    std::sort(steps.begin(), steps.end());
    rising_.clear();
    for (const auto& [step, i] : steps) {
      if (step > left_) break;
      density_[i] += step;
      left_ -= step;
      rising_.push_back(i);
    }
    std::sort(rising_.begin(), rising_.end());
  }

  /// No head gains from more; the total is spent all the same, in proportion to what is free.
  void ShareRest() {
    std::vector<std::int64_t> capacity;
    std::vector<std::int64_t*> level;
    for (std::int64_t& density : density_) {
      capacity.push_back(kUnit - density);
      level.push_back(&density);
    }
    ShareInProportion(left_, capacity, level);
  }

  std::span<const GainCurve> curves_;
  std::vector<std::int64_t> density_;
  std::vector<std::size_t> rising_;
  std::int64_t left_;
};

}  // namespace

std::vector<std::int64_t> MaximiseLeximin(std::span<const GainCurve> curves, std::int64_t total) {
  return WaterFilling(curves, total).Run();
}

}  // namespace shplb::internal
