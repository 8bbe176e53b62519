// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "budget_curve.h"

namespace shplb::internal {

std::vector<Segment> HullSegments(std::span<const GainCurve> curves) {
  std::vector<Segment> segments;
  for (std::size_t head = 0; head < curves.size(); ++head) {
    const GainCurve hull = ConcaveHull(curves[head]);
    for (std::size_t i = 1; i < hull.size(); ++i) {
      segments.push_back({hull[i].density - hull[i - 1].density, hull[i].gain - hull[i - 1].gain,
                          static_cast<std::int64_t>(head)});
    }
  }
  // One head has no two segments of equal slope, so (slope, head) is a total order.
  std::sort(segments.begin(), segments.end(), [](const Segment& a, const Segment& b) {
    const int128 cross = Cross(a, b);
    return cross != 0 ? cross > 0 : a.head < b.head;
  });
  return segments;
}

GainCurve ConcaveHull(const GainCurve& curve) {
  GainCurve hull;
  for (const CurvePoint& point : curve) {
    while (hull.size() >= 2) {
      const CurvePoint& a = hull[hull.size() - 2];
      const CurvePoint& b = hull.back();
      const int128 turn = static_cast<int128>(b.gain - a.gain) * (point.density - b.density) -
                          static_cast<int128>(point.gain - b.gain) * (b.density - a.density);
      if (turn > 0) break;
      hull.pop_back();
    }
    hull.push_back(point);
  }
  return hull;
}

void ShareInProportion(std::int64_t amount, std::span<const std::int64_t> capacity,
                       std::span<std::int64_t* const> level) {
  int128 sum = 0;
  for (const std::int64_t c : capacity) sum += c;
  if (sum == 0 || amount == 0) return;
  std::int64_t left = amount;
  for (std::size_t i = 0; i < capacity.size(); ++i) {
    const auto share = static_cast<std::int64_t>(static_cast<int128>(amount) * capacity[i] / sum);
    *level[i] += share;
    left -= share;
  }
  // Fewer units than slots with a remainder are left, and those slots are not full.
  for (std::size_t i = 0; i < capacity.size() && left > 0; ++i) {
    if (static_cast<int128>(amount) * capacity[i] % sum == 0) continue;
    ++*level[i];
    --left;
  }
}

std::vector<std::int64_t> MaximiseSum(std::span<const GainCurve> curves, std::int64_t total) {
  std::vector<std::int64_t> density(curves.size());
  std::int64_t left = total;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    density[i] = curves[i].front().density;
    left -= density[i];
  }
  const std::vector<Segment> segments = HullSegments(curves);
  std::size_t begin = 0;
  while (begin < segments.size() && left > 0) {
    std::size_t end = begin;
    std::vector<std::int64_t> lengths;
    std::vector<std::int64_t*> levels;
    std::int64_t sum = 0;
    while (end < segments.size() && Cross(segments[begin], segments[end]) == 0) {
      lengths.push_back(segments[end].length);
      levels.push_back(&density[static_cast<std::size_t>(segments[end].head)]);
      sum += segments[end].length;
      ++end;
    }
    const std::int64_t given = std::min(sum, left);
    ShareInProportion(given, lengths, levels);
    left -= given;
    begin = end;
  }
  return density;
}

GainCurve SumOfHulls(std::span<const GainCurve> curves) {
  CurvePoint point{0, 0};
  for (const GainCurve& curve : curves) {
    point.density += curve.front().density;
    point.gain += curve.front().gain;
  }
  GainCurve sum{point};
  const std::vector<Segment> segments = HullSegments(curves);
  for (std::size_t i = 0; i < segments.size(); ++i) {
    point.density += segments[i].length;
    point.gain += segments[i].rise;
    const bool corner = i + 1 == segments.size() || Cross(segments[i], segments[i + 1]) != 0;
    if (corner) sum.push_back(point);
  }
  return sum;
}

std::int64_t GainOnGrid(const GainCurve& curve, std::int64_t density) {
  const auto next = std::lower_bound(
      curve.begin(), curve.end(), density,
      [](const CurvePoint& point, std::int64_t value) { return point.density < value; });
  if (next == curve.end()) return curve.back().gain;
  if (next == curve.begin()) return curve.front().gain;
  const CurvePoint& a = *(next - 1);
  return a.gain + MulDiv(next->gain - a.gain, density - a.density, next->density - a.density);
}

double GainAt(const GainCurve& curve, std::int64_t density) {
  const auto next = std::lower_bound(
      curve.begin(), curve.end(), density,
      [](const CurvePoint& point, std::int64_t value) { return point.density < value; });
  if (next == curve.end()) return static_cast<double>(curve.back().gain);
  if (next == curve.begin()) return static_cast<double>(curve.front().gain);
  const CurvePoint& a = *(next - 1);
  const double rise = static_cast<double>(next->gain - a.gain);
  const double part = static_cast<double>(density - a.density);
  return static_cast<double>(a.gain) + rise * part / static_cast<double>(next->density - a.density);
}

}  // namespace shplb::internal
