// SPDX-License-Identifier: Apache-2.0
#include "budget_group.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "shplb/error.h"

namespace shplb::internal {

namespace {

constexpr double kMinSpacing = 1e-9;
constexpr std::int64_t kMaxPoints = 4096;

bool IsError(const BudgetProblem& p) { return p.objective == BudgetObjective::kMinError; }

std::span<const double> CurveOf(const BudgetProblem& p, std::int64_t head) {
  const std::size_t num_points = p.densities.size();
  return p.curves.subspan(static_cast<std::size_t>(head) * num_points, num_points);
}

void CheckSize(std::string_view argument, std::size_t got, std::size_t expected) {
  if (got == expected) return;
  throw InvalidArgument(argument, ToText(static_cast<std::int64_t>(got)) + " elements",
                        ToText(static_cast<std::int64_t>(expected)));
}

void CheckShapes(const BudgetProblem& p) {
  RequireInRange("num_layers", p.num_layers, 1, kMaxBudgetHeads);
  RequireInRange("num_heads", p.num_heads, 1, kMaxBudgetHeads / p.num_layers);
  RequireInRange("num_points", static_cast<std::int64_t>(p.densities.size()), 1, kMaxPoints);
  const auto heads = static_cast<std::size_t>(p.num_layers * p.num_heads);
  CheckSize("curves", p.curves.size(), heads * p.densities.size());
  if (!p.zero.empty()) CheckSize("zero", p.zero.size(), heads);
  if (!p.inert.empty()) CheckSize("inert", p.inert.size(), heads);
  if (!p.zero.empty() && !IsError(p)) {
    throw InvalidArgument("zero", "an array", "None unless objective is 'min_error'");
  }
}

void CheckDensities(const BudgetProblem& p) {
  double previous = 0.0;
  for (std::size_t i = 0; i < p.densities.size(); ++i) {
    if (!(p.densities[i] - previous >= kMinSpacing) || p.densities[i] > 1.0) {
      throw InvalidArgument(ElementName("densities", {static_cast<std::int64_t>(i)}),
                            ToText(p.densities[i]),
                            "strictly ascending values in (0, 1], at least 1e-9 apart");
    }
    previous = p.densities[i];
  }
  if (previous != 1.0) throw InvalidArgument("densities[-1]", ToText(previous), "1");
}

void CheckTotals(const BudgetProblem& p) {
  if (!(p.total_density > 0.0 && p.total_density <= 1.0)) {
    throw InvalidArgument("total_density", ToText(p.total_density), "a value in (0, 1]");
  }
  if (!(p.min_density >= 0.0 && p.min_density <= p.total_density)) {
    throw InvalidArgument("min_density", ToText(p.min_density),
                          "a value in [0, total_density=" + ToText(p.total_density) + "]");
  }
}

void CheckValues(const BudgetProblem& p, std::string_view name, std::span<const double> values,
                 std::int64_t per_head) {
  const double highest = IsError(p) ? HUGE_VAL : 1.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= 0.0 && values[i] <= highest && std::isfinite(values[i])) continue;
    const auto at = static_cast<std::int64_t>(i);
    const std::int64_t head = at / per_head;
    const auto element =
        per_head == 1 ? ElementName(name, {head / p.num_heads, head % p.num_heads})
                      : ElementName(name, {head / p.num_heads, head % p.num_heads, at % per_head});
    throw InvalidArgument(element, ToText(values[i]),
                          IsError(p) ? "a finite error >= 0" : "a recovery in [0, 1]");
  }
}

/// Error at density 0 of one head, before it is made monotone.
double ErrorAtZero(const BudgetProblem& p, std::int64_t head) {
  if (!p.zero.empty()) return p.zero[static_cast<std::size_t>(head)];
  const auto curve = CurveOf(p, head);
  if (curve.size() == 1) return curve[0];
  const double slope = std::max(curve[0] - curve[1], 0.0) / (p.densities[1] - p.densities[0]);
  return curve[0] + slope * p.densities[0];
}

/// Values at density 0 and at every point, as gain in [0, 1] over density 0 of the worst head.
/// `scale` is the largest error in the group.
std::vector<double> Gains(const BudgetProblem& p, std::int64_t head, double scale) {
  const auto curve = CurveOf(p, head);
  std::vector<double> gains{IsError(p) && scale > 0 ? 1.0 - ErrorAtZero(p, head) / scale : 0.0};
  for (const double value : curve) {
    const double gain = IsError(p) ? (scale > 0 ? 1.0 - value / scale : 0.0) : value;
    gains.push_back(std::max(gains.back(), gain));
  }
  return gains;
}

/// The part of a head's curve from the floor on.
GainCurve CurveFromFloor(const BudgetProblem& p, std::int64_t head, double scale) {
  const std::int64_t floor = OnGrid(p.min_density);
  const std::vector<double> gains = Gains(p, head, scale);
  GainCurve curve;
  CurvePoint previous{0, OnGrid(gains[0])};
  if (floor == 0) curve.push_back(previous);
  for (std::size_t i = 0; i < p.densities.size(); ++i) {
    const CurvePoint point{OnGrid(p.densities[i]), OnGrid(gains[i + 1])};
    if (curve.empty() && point.density > floor) {
      const std::int64_t part = MulDiv(point.gain - previous.gain, floor - previous.density,
                                       point.density - previous.density);
      curve.push_back({floor, previous.gain + part});
    }
    if (point.density >= floor) curve.push_back(point);
    previous = point;
  }
  return curve;
}

}  // namespace

std::int64_t OnGrid(double value) { return std::llround(value * static_cast<double>(kUnit)); }

bool IsInert(const BudgetProblem& p, std::int64_t head) {
  return !p.inert.empty() && p.inert[static_cast<std::size_t>(head)] != 0;
}

void ValidateBudgets(const BudgetProblem& p) {
  CheckShapes(p);
  CheckDensities(p);
  CheckTotals(p);
  CheckValues(p, "curves", p.curves, static_cast<std::int64_t>(p.densities.size()));
  CheckValues(p, "zero", p.zero, 1);
  for (std::int64_t head = 0; head < p.num_layers * p.num_heads; ++head) {
    if (!IsInert(p, head)) return;
  }
  throw InvalidArgument("inert", "every head inert", "at least one head that is not");
}

BudgetGroup MakeGroup(const BudgetProblem& p, std::int64_t first, std::int64_t last) {
  BudgetGroup group;
  for (std::int64_t head = first; head < last; ++head) {
    if (IsInert(p, head)) continue;
    group.heads.push_back(head);
    if (!IsError(p)) continue;
    const auto curve = CurveOf(p, head);
    group.scale = std::max(
        {group.scale, ErrorAtZero(p, head), *std::max_element(curve.begin(), curve.end())});
  }
  if (!std::isfinite(group.scale)) {
    throw InvalidArgument("curves", "an overflow below the first density", "smaller errors");
  }
  for (const std::int64_t head : group.heads) {
    group.curves.push_back(CurveFromFloor(p, head, group.scale));
  }
  return group;
}

double FromGrid(const BudgetProblem& p, std::int64_t density) {
  if (density == OnGrid(p.total_density)) return p.total_density;
  if (density == OnGrid(p.min_density)) return p.min_density;
  const double value = static_cast<double>(density) / static_cast<double>(kUnit);
  const auto next = std::lower_bound(p.densities.begin(), p.densities.end(), value - kMinSpacing);
  if (next != p.densities.end() && OnGrid(*next) == density) return *next;
  return value;
}

}  // namespace shplb::internal
