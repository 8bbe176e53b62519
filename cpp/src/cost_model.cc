// SPDX-License-Identifier: Apache-2.0
#include "shplb/cost_model.h"

#include "shplb/error.h"

namespace shplb {

TileShape TileShapeOf(std::int64_t head_dim) {
  switch (head_dim) {
    case 64:
      return {192, 96};
    case 128:
      return {128, 96};
    case 256:
      return {128, 32};
    default:
      throw InvalidArgument("head_dim", ToText(head_dim), "64, 128 or 256");
  }
}

void Validate(const CostModel& cost) {
  RequireInRange("cost.item_ns", cost.item_ns, 0, kMaxRate);
  RequireInRange("cost.kv_tile_ns", cost.kv_tile_ns, 1, kMaxRate);
  RequireInRange("cost.dense_kv_tile_ns", cost.dense_kv_tile_ns, 1, kMaxRate);
  RequireInRange("cost.select_pair_ps", cost.select_pair_ps, 0, kMaxRate);
  RequireInRange("cost.select_block_ps", cost.select_block_ps, 0, 100 * kMaxRate);
  RequireInRange("cost.pool_page_ps", cost.pool_page_ps, 0, kMaxRate);
  RequireInRange("cost.layer_ns", cost.layer_ns, 0, 1000 * kMaxRate);
}

}  // namespace shplb
