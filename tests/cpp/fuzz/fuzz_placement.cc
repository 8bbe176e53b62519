// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "input.h"
#include "shplb/placement.h"

namespace shplb::fuzz {
void Run(Input* input) {
  PlacementProblem p;
  p.num_layers = input->Extent(3);
  p.num_ranks = input->Extent(8);
  p.num_units =
      input->Bit()
          ? input->Extent(24)
          : static_cast<std::int64_t>(input->Product(p.num_ranks, input->Take<std::uint8_t>() % 4));
  p.equal_count = input->Bit();
  p.method = static_cast<PlacementMethod>(input->Take<std::uint8_t>() % 6);
  // The exact search is bounded by a count of nodes that would take seconds per input here.
  if (p.method == PlacementMethod::kExact && p.num_units > 10) p.method = PlacementMethod::kAuto;
  std::vector<std::int64_t> loads(input->Product(p.num_layers, p.num_units) % 4096);
  for (auto& load : loads) load = input->Bit() ? input->Extent(250) : input->Take<std::uint16_t>();
  p.loads = loads;
  const Placement placement = PlaceHeads(p);
  for (std::int64_t layer = 0; layer < p.num_layers; ++layer) {
    std::vector<std::int64_t> sums(static_cast<std::size_t>(p.num_ranks)), counts(sums.size());
    for (std::int64_t unit = 0; unit < p.num_units; ++unit) {
      const std::int32_t rank = placement.head_to_rank[layer * p.num_units + unit];
      Expect(rank >= 0 && rank < p.num_ranks, "ranks are in range");
      sums[rank] += loads[layer * p.num_units + unit];
      ++counts[rank];
    }
    for (std::int64_t rank = 0; rank < p.num_ranks; ++rank) {
      Expect(sums[rank] == placement.rank_loads[layer * p.num_ranks + rank], "loads add up");
      Expect(!p.equal_count || counts[rank] == p.num_units / p.num_ranks, "counts are equal");
    }
    Expect(placement.lower_bound[layer] <= *std::max_element(sums.begin(), sums.end()),
           "the bound is below the result");
  }
}

}  // namespace shplb::fuzz
