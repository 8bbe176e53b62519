// SPDX-License-Identifier: Apache-2.0
#include "shplb/step_planner.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "digest.h"
#include "sample.h"
#include "shplb/error.h"
#include "shplb/simulate.h"

namespace {
std::atomic<std::int64_t> allocations{0};

void* Allocate(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t size) { return Allocate(size); }
void* operator new[](std::size_t size) { return Allocate(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace shplb {
namespace {

using Lengths = std::vector<std::int64_t>;

TEST(StepPlanner, AllocatesNothingOnceWarm) {
  const sample::Model model = sample::MakeModel(4, 5, 4, 2, 2048, true, 1);
  StepPlanner planner(model.config);
  const Lengths prefix{100'000, 0, 64}, fresh{8192, 3000, 1};
  const Lengths fewer_prefix{5000}, fewer{700};
  const Lengths kv(256, 9999);
  Lengths loads(8);
  std::vector<std::byte> buffer(static_cast<std::size_t>(planner.BufferBytes(3, 11193)));
  StepPlan plan;
  planner.Plan(prefix, fresh, StepMode::kSparse, buffer, &plan);
  planner.DecodeLoads(kv, loads);
  planner.SetRankSpeeds(Lengths{1000, 1100});
  const std::int64_t before = allocations;
  for (int step = 0; step < 20; ++step) {
    planner.Plan(prefix, fresh, StepMode::kSparse, buffer, &plan);
    planner.Plan(prefix, fresh, StepMode::kAuto, buffer, &plan);
    planner.Plan(fewer_prefix, fewer, StepMode::kSparse, buffer, &plan);
    planner.Predict(prefix, fresh, StepMode::kAuto, &plan);
    planner.DecodeLoads(kv, loads);
  }
  EXPECT_EQ(allocations - before, 0);
}

TEST(StepPlanner, ThreadsWriteTheSameBytes) {
  sample::Model model = sample::MakeModel(7, 5, 4, 2, 2048, true, 1);
  StepPlanner alone(model.config);
  model.config.num_threads = 4;
  StepPlanner crew(model.config);
  const Lengths prefix{100'000, 0, 64}, fresh{8192, 3000, 1};
  for (int step = 0; step < 50; ++step) {
    const Lengths some(fresh.begin(), fresh.begin() + step % 3 + 1);
    const Lengths old(prefix.begin(), prefix.begin() + step % 3 + 1);
    const auto size = static_cast<std::size_t>(alone.BufferBytes(3, 11193));
    std::vector<std::byte> one(size), other(size);
    StepPlan first, second;
    alone.Plan(old, some, StepMode::kSparse, one, &first);
    crew.Plan(old, some, StepMode::kSparse, other, &second);
    EXPECT_EQ(one, other);
    EXPECT_EQ(first.plan_info, second.plan_info);
    EXPECT_EQ(first.list_indptr_offset, second.list_indptr_offset);
    EXPECT_EQ(first.cta_makespan_ns, second.cta_makespan_ns);
    EXPECT_EQ(first.num_bytes, second.num_bytes);
  }
}

TEST(StepPlanner, BufferBytesSuffice) {
  const sample::Model model = sample::MakeModel(2, 4, 2, 2, 64, false, 2);
  StepPlanner planner(model.config);
  sample::Random random(9);
  StepPlan plan;
  for (int round = 0; round < 500; ++round) {
    Lengths prefix, fresh;
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i <= random.Below(5); ++i) {
      prefix.push_back(random.Below(60 * 64));
      fresh.push_back(1 + random.Below(256));
      rows += fresh.back();
    }
    std::vector<std::byte> buffer(static_cast<std::size_t>(
        planner.BufferBytes(static_cast<std::int64_t>(prefix.size()), rows)));
    planner.Plan(prefix, fresh, StepMode::kSparse, buffer, &plan);
    EXPECT_LE(plan.num_bytes, static_cast<std::int64_t>(buffer.size()));
  }
}

TEST(StepPlanner, OrderAndHistoryLeaveNoTrace) {
  EXPECT_EQ(sample::DigestOfCore(60, 0), sample::DigestOfCore(60, 99));
}

TEST(StepPlanner, RefusesTooManyCopies) {
  sample::Model model = sample::MakeModel(1, 4, 1, 2, 8, false, 1);
  model.slot_groups = {0, 1, 0, 0};
  EXPECT_THROW(StepPlanner planner(model.config), InvalidArgument);
}

TEST(Simulate, AddsUpSteps) {
  const sample::Model model = sample::MakeModel(3, 4, 4, 2, 2048, false, 1);
  StepPlanner planner(model.config);
  const Lengths indptr{0, 1, 3}, prefix{65536, 0, 120'000}, fresh{8192, 100, 4000};
  const Simulation s = Simulate(&planner, {indptr, prefix, fresh}, StepMode::kAuto);
  StepPlan plan;
  planner.Predict(Lengths{0, 120'000}, Lengths{100, 4000}, StepMode::kAuto, &plan);
  EXPECT_EQ(s.step_ns[1], plan.step_ns);
  EXPECT_EQ(s.dense_ns[1], plan.dense_ns);
  EXPECT_GE(s.bubble[0], 0.0);
  EXPECT_LT(s.bubble[0], 1.0);
  const Lengths bad{0, 0, 3};
  EXPECT_THROW(Simulate(&planner, {bad, prefix, fresh}, StepMode::kAuto), InvalidArgument);
}

}  // namespace
}  // namespace shplb
