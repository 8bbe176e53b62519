// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shplb::internal {

__extension__ typedef __int128 int128;

/// Grid of densities and of values: 1.0 is 2^40, so sums over 2^21 heads fit int64.
inline constexpr std::int64_t kUnit = std::int64_t{1} << 40;
inline constexpr std::int64_t kMaxBudgetHeads = std::int64_t{1} << 21;

struct CurvePoint {
  std::int64_t density;  // [0, kUnit] per head, strictly ascending along a curve
  std::int64_t gain;     // [0, kUnit] per head, non-decreasing along a curve
};

/// Gain of one head from its floor (first point) to density kUnit (last point), or of several
/// heads together as a function of a summed density.
using GainCurve = std::vector<CurvePoint>;

/// a * b / c rounded down; operands in [0, 2^62], c > 0, result fits int64.
inline std::int64_t MulDiv(std::int64_t a, std::int64_t b, std::int64_t c) {
  return static_cast<std::int64_t>(static_cast<int128>(a) * b / c);
}

/// Gives `amount` to slots in proportion to their capacities, rounding in index order; `amount` is
/// at most their sum. Adds to `level`.
void ShareInProportion(std::int64_t amount, std::span<const std::int64_t> capacity,
                       std::span<std::int64_t* const> level);

/// Densities [num_curves] that maximise the sum of gains on the concave hulls; their sum is
/// `total`, which lies between the sum of floors and num_curves * kUnit.
std::vector<std::int64_t> MaximiseSum(std::span<const GainCurve> curves, std::int64_t total);

/// Densities [num_curves] that maximise the sorted gains lexicographically; same contract.
std::vector<std::int64_t> MaximiseLeximin(std::span<const GainCurve> curves, std::int64_t total);

/// Upper concave hull, without collinear points.
GainCurve ConcaveHull(const GainCurve& curve);

/// Piece of a concave hull.
struct Segment {
  std::int64_t length;  // density, > 0
  std::int64_t rise;    // gain, >= 0
  std::int64_t head;
};

/// Positive if `a` is steeper than `b`.
inline int128 Cross(const Segment& a, const Segment& b) {
  return static_cast<int128>(a.rise) * b.length - static_cast<int128>(b.rise) * a.length;
}

/// Segments of all hulls, steepest first, then by head.
std::vector<Segment> HullSegments(std::span<const GainCurve> curves);

/// Largest sum of gains on the concave hulls as a function of the summed density: concave, from the
/// sum of floors to the sum of ends. One point {0, 0} for no curves.
GainCurve SumOfHulls(std::span<const GainCurve> curves);

/// Gain at a density, rounded down; constant beyond both ends.
std::int64_t GainOnGrid(const GainCurve& curve, std::int64_t density);

/// Gain at a density inside the curve's range, in curve units (not rounded to the grid).
double GainAt(const GainCurve& curve, std::int64_t density);

}  // namespace shplb::internal
