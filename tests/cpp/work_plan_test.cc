// SPDX-License-Identifier: Apache-2.0
#include "shplb/work_plan.h"

#include <gtest/gtest.h>

#include <numeric>

#include "sample.h"
#include "shplb/error.h"

namespace shplb {
namespace {

struct Items {
  explicit Items(std::size_t count) : zeros(count), rows(count, 128), tokens(count, 128) {}
  WorkPlanProblem Problem(std::int64_t num_ctas) const {
    WorkPlanProblem p;
    p.qo_indptr = p.kv_indptr = p.head_indices = zeros;
    p.qo_lens = rows;
    p.kv_lens = tokens;
    p.num_ctas = num_ctas;
    return p;
  }
  std::vector<std::int32_t> zeros, rows, tokens;
};

WorkPlan Plan(const Items& items, std::int64_t num_ctas) {
  const auto count = static_cast<std::int64_t>(items.tokens.size());
  std::vector<std::byte> buffer(static_cast<std::size_t>(WorkPlanBytes(count, num_ctas)));
  return WorkPlanner().Plan(items.Problem(num_ctas), buffer);
}

TEST(WorkPlan, OffsetsFollowEachOtherAligned) {
  const WorkPlan plan = Plan(Items(5), 3);
  EXPECT_EQ(plan.plan_info, (PlanInfo{0, 32, 64, 96, 128, 160, 192, 208, 0}));
  EXPECT_EQ(plan.num_bytes, 240);
}

TEST(WorkPlan, LongestFirstOnTwoCtas) {
  Items items(4);
  items.tokens = {960, 1920, 2880, 3840};
  const WorkPlan plan = Plan(items, 2);
  EXPECT_EQ(plan.order, (std::vector<std::int32_t>{3, 0, 2, 1}));
  EXPECT_EQ(plan.cta_loads[0], plan.cta_loads[1]);
  EXPECT_EQ(plan.makespan_ns, plan.lower_bound_ns);
}

TEST(WorkPlan, LongKeysNeedTwoSortPasses) {
  sample::Random random(5);
  Items items(3000);
  for (auto& t : items.tokens) t = static_cast<std::int32_t>(128 + random.Skewed(23));
  const WorkPlan plan = Plan(items, 1);
  for (std::size_t i = 1; i < plan.order.size(); ++i) {
    const auto tiles = [&](std::size_t at) { return (items.tokens[plan.order[at]] + 95) / 96; };
    ASSERT_GE(tiles(i - 1), tiles(i));
    if (tiles(i - 1) == tiles(i)) {
      ASSERT_LT(plan.order[i - 1], plan.order[i]);
    }
  }
}

TEST(WorkPlan, AUsedPlannerPlansLikeANewOne) {
  sample::Random random(6);
  WorkPlanner used;
  for (const std::int64_t num_ctas : {132, 7, 132, 1}) {
    Items items(static_cast<std::size_t>(200 + random.Below(3000)));
    for (auto& t : items.tokens) t = static_cast<std::int32_t>(128 + random.Skewed(20));
    const auto bytes = static_cast<std::size_t>(
        WorkPlanBytes(static_cast<std::int64_t>(items.tokens.size()), num_ctas));
    std::vector<std::byte> mine(bytes), theirs(bytes);
    const WorkPlan plan = used.Plan(items.Problem(num_ctas), mine);
    const WorkPlan expected = WorkPlanner().Plan(items.Problem(num_ctas), theirs);
    EXPECT_EQ(plan.order, expected.order);
    EXPECT_EQ(plan.cta_loads, expected.cta_loads);
    EXPECT_EQ(mine, theirs);
  }
}

TEST(WorkPlan, RefusesWhatTheKernelCannotRun) {
  Items items(4);
  std::vector<std::byte> buffer(4096);
  items.rows[2] = 129;
  EXPECT_THROW(WorkPlanner().Plan(items.Problem(4), buffer), InvalidArgument);
  items.rows[2] = 128;
  items.tokens[1] = 100;
  EXPECT_THROW(WorkPlanner().Plan(items.Problem(4), buffer), InvalidArgument);
}

}  // namespace
}  // namespace shplb
