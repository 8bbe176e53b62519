// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <vector>

#include "input.h"
#include "shplb/work_plan.h"

namespace shplb::fuzz {
void Run(Input* input) {
  const auto count = static_cast<std::size_t>(input->Take<std::uint16_t>() % 1500);
  std::vector<std::int32_t> qo(count), rows(count), kv(count), tokens(count), heads(count);
  const std::uint8_t scale = input->Take<std::uint8_t>() % 18;
  for (std::size_t i = 0; i < count; ++i) {
    qo[i] = input->Take<std::uint8_t>();
    rows[i] = 1 + input->Take<std::uint8_t>() % 128;
    kv[i] = input->Take<std::uint8_t>();
    tokens[i] = rows[i] + (input->Take<std::uint8_t>() << scale);
    heads[i] = input->Take<std::uint8_t>();
  }
  if (count > 0 && input->Bit()) {
    std::vector<std::int32_t>* const arrays[] = {&qo, &rows, &kv, &tokens, &heads};
    (*arrays[input->Take<std::uint8_t>() % 5])[input->Take<std::uint16_t>() % count] =
        input->Take<std::int32_t>();
  }
  WorkPlanProblem p;
  p.qo_indptr = qo;
  p.qo_lens = rows;
  p.kv_indptr = kv;
  p.kv_lens = tokens;
  p.head_indices = heads;
  p.num_ctas = input->Extent(140);
  p.head_dim = input->Bit() ? 128 : input->Extent(249);
  p.cost.item_ns = input->Extent(249);
  p.cost.kv_tile_ns = input->Extent(249);
  p.method = static_cast<WorkPlanMethod>(input->Take<std::uint8_t>() % 3);
  std::vector<std::byte> buffer(static_cast<std::size_t>(
      input->Bit() ? WorkPlanBytes(static_cast<std::int64_t>(count), p.num_ctas) : 64));
  static WorkPlanner planner;
  const WorkPlan plan = planner.Plan(p, buffer);
  std::vector<std::int32_t> order = plan.order;
  std::sort(order.begin(), order.end());
  for (std::size_t i = 0; i < count; ++i) {
    Expect(order[i] == static_cast<std::int32_t>(i), "every item once");
  }
  Expect(plan.makespan_ns >= plan.lower_bound_ns, "the bound is below the result");
  Expect(plan.num_bytes <= static_cast<std::int64_t>(buffer.size()), "nothing past the buffer");
}

}  // namespace shplb::fuzz
