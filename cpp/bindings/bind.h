// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/pybind11.h>

namespace shplb::bindings {

void BindBalanceAware(pybind11::module_& m);
void BindBudget(pybind11::module_& m);
void BindPlacement(pybind11::module_& m);
void BindReplicas(pybind11::module_& m);
void BindWorkPlan(pybind11::module_& m);     // and CostModel
void BindStepPlanner(pybind11::module_& m);  // after BindWorkPlan
void BindSimulate(pybind11::module_& m);     // after BindStepPlanner

}  // namespace shplb::bindings
