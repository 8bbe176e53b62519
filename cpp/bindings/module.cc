// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>

#include "bind.h"
#include "shplb/error.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of shplb: budgets, placement and plans. Use it through the package shplb.";
  py::register_exception<shplb::InvalidArgument>(m, "InvalidArgument", PyExc_ValueError);
  py::register_exception<shplb::Infeasible>(m, "Infeasible", PyExc_RuntimeError);
  shplb::bindings::BindBudget(m);
  shplb::bindings::BindBalanceAware(m);
  shplb::bindings::BindPlacement(m);
  shplb::bindings::BindReplicas(m);
  shplb::bindings::BindWorkPlan(m);
  shplb::bindings::BindStepPlanner(m);
  shplb::bindings::BindSimulate(m);
}
