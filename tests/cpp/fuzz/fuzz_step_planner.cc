// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "../sample.h"
#include "input.h"
#include "shplb/simulate.h"

namespace shplb::fuzz {
namespace {

using Lengths = std::vector<std::int64_t>;

void CheckPlan(const StepPlan& plan, const std::vector<std::byte>& buffer,
               const StepPlannerConfig& c) {
  Expect(plan.num_bytes <= static_cast<std::int64_t>(buffer.size()), "nothing past the buffer");
  if (plan.num_blocks == 0) return;
  const auto at = [&](std::int64_t offset) {
    return reinterpret_cast<const std::int32_t*>(buffer.data() + offset);
  };
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    const std::int64_t* const info = plan.plan_info.data() + layer * 9;
    const std::int32_t* const work = at(info[6]);
    Expect(work[0] == 0 && work[c.num_ctas] <= plan.num_items, "items belong to CTAs");
    const std::int64_t pages = at(plan.list_indptr_offset[layer])[plan.num_lists];
    Expect(pages == plan.list_pages[layer], "lists add up");
    for (std::int64_t i = 0; i < work[c.num_ctas]; ++i) {
      const std::int64_t end = at(info[2])[i] + (at(info[4])[i] + kPageTokens - 1) / kPageTokens;
      Expect(end <= pages, "lists end inside the page table");
      Expect(at(info[4])[i] >= at(info[3])[i], "keys cover the rows");
    }
  }
}

}  // namespace

void Run(Input* input) {
  const bool copied = input->Bit();
  const std::int64_t ranks = 1 + input->Take<std::uint8_t>() % 3;
  const std::int64_t groups = ranks * (1 + input->Take<std::uint8_t>() % 2) - (copied ? 1 : 0);
  if (groups < 1) return;
  sample::Model model = sample::MakeModel(
      1 + input->Take<std::uint8_t>() % 2, groups, 1 + input->Take<std::uint8_t>() % 3, ranks,
      1 + input->Take<std::uint8_t>() % 60, copied, input->Take<std::uint8_t>());
  StepPlannerConfig& c = model.config;
  if (input->Bit())
    model.keep_pages[input->Take<std::uint16_t>() % model.keep_pages.size()] +=
        input->Take<std::int8_t>();
  if (input->Bit())
    model.slot_groups[input->Take<std::uint8_t>() % model.slot_groups.size()] +=
        input->Take<std::int8_t>();
  c.head_dim = input->Bit() ? 128 : (input->Bit() ? 64 : input->Extent(249));
  c.rank = input->Extent(2);
  c.sink_pages = input->Extent(3);
  c.local_pages = input->Extent(3);
  c.shared_lists = input->Bit();
  c.num_ctas = input->Extent(140);
  StepPlanner planner(c);
  StepPlan plan;
  for (int step = 0; step < 3; ++step) {
    Lengths prefix, fresh;
    for (int i = input->Take<std::uint8_t>() % 4; i >= 0; --i) {
      prefix.push_back(input->Bit() ? input->Extent(249) : input->Take<std::uint16_t>() % 4096);
      fresh.push_back(input->Bit() ? input->Extent(249) : input->Take<std::uint16_t>() % 2048);
    }
    std::vector<std::byte> buffer(input->Bit() ? 1 << 20 : 4096);
    const auto mode = static_cast<StepMode>(input->Take<std::uint8_t>() % 3);
    if (input->Bit()) {
      Lengths speeds(static_cast<std::size_t>(ranks));
      for (auto& speed : speeds) speed = kLeastSpeed - 1 + input->Take<std::uint16_t>() % 515;
      Guard([&] { planner.SetRankSpeeds(speeds); });
    }
    std::vector<std::uint8_t> stock(input->Bit() ? 0 : prefix.size() + (input->Bit() ? 0 : 1));
    for (auto& mark : stock) mark = input->Bit();
    Guard([&] {
      planner.Plan(prefix, fresh, mode, buffer, &plan, stock);
      CheckPlan(plan, buffer, c);
      for (std::size_t i = 0; i < stock.size(); ++i)
        Expect(stock[i] == 0 || plan.sparse[i] == 0, "stock requests are not sparse");
    });
    Guard([&] {
      Lengths loads(static_cast<std::size_t>(c.num_layers * c.num_ranks));
      planner.DecodeLoads(prefix, loads);
      for (const std::int64_t load : loads) Expect(load > 0, "loads are positive");
    });
    Guard([&] {
      const Lengths indptr{0, input->Extent(2), static_cast<std::int64_t>(prefix.size())};
      Simulate(&planner, {indptr, prefix, fresh}, mode);
    });
  }
}

}  // namespace shplb::fuzz
