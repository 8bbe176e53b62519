// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "input.h"
#include "shplb/replica_placement.h"

namespace shplb::fuzz {

void Run(Input* input) {
  ReplicaProblem p;
  p.num_layers = input->Extent(2);
  p.num_ranks = input->Extent(6);
  p.num_units =
      input->Bit()
          ? input->Extent(12)
          : static_cast<std::int64_t>(input->Product(p.num_ranks, input->Take<std::uint8_t>() % 3));
  p.num_replicas = input->Extent(2);
  p.method = static_cast<ReplicaMethod>(input->Take<std::uint8_t>() % 3);
  // The exact search is bounded by a count of nodes that would take seconds per input here.
  if (p.method == ReplicaMethod::kExact && p.num_units > 5) p.method = ReplicaMethod::kAuto;
  std::vector<std::int64_t> loads(input->Product(p.num_layers, p.num_units) % 4096);
  for (auto& load : loads) load = input->Bit() ? input->Extent(250) : input->Take<std::uint16_t>();
  p.loads = loads;
  const ReplicaPlacement placement = PlaceReplicas(p);
  const std::vector<std::int64_t> divided =
      DivideReplicas(loads, placement.slot_units, p.num_layers, p.num_units, p.num_ranks);
  for (std::int64_t layer = 0; layer < p.num_layers; ++layer) {
    const auto mine = placement.rank_loads.begin() + layer * p.num_ranks;
    const auto theirs = divided.begin() + layer * p.num_ranks;
    const std::int64_t most = *std::max_element(mine, mine + p.num_ranks);
    Expect(most == *std::max_element(theirs, theirs + p.num_ranks), "a division is the best one");
    Expect(placement.lower_bound[layer] <= most, "the bound is below the result");
  }
}

}  // namespace shplb::fuzz
