// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mutex>
#include <string>

#include "shplb/error.h"
#include "shplb/step_planner.h"

namespace shplb::bindings {

/// The planner's scratch is not shared: a second thread waits (with the GIL released).
struct PyStepPlanner {
  explicit PyStepPlanner(const StepPlannerConfig& config) : planner(config) {}
  StepPlanner planner;
  std::mutex mutex;
};

inline StepMode StepModeOf(const std::string& name) {
  if (name == "auto") return StepMode::kAuto;
  if (name == "sparse") return StepMode::kSparse;
  if (name == "dense") return StepMode::kDense;
  throw InvalidArgument("mode", "'" + name + "'", "'auto', 'sparse' or 'dense'");
}

}  // namespace shplb::bindings
