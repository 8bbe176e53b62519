// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <string>

#include "array.h"
#include "bind.h"
#include "budget_arguments.h"
#include "shplb/budget.h"

namespace shplb::bindings {

namespace {

BudgetObjective ObjectiveOf(const std::string& name) {
  if (name == "min_error") return BudgetObjective::kMinError;
  if (name == "max_min") return BudgetObjective::kMaxMin;
  if (name == "max_mean") return BudgetObjective::kMaxMean;
  if (name == "uniform") return BudgetObjective::kUniform;
  throw InvalidArgument("objective", "'" + name + "'",
                        "'min_error', 'max_min', 'max_mean' or 'uniform'");
}

struct PyBudgets {
  py::array density;
  double mean_density;
  std::optional<double> worst_recovery;
  std::optional<double> total_error;
};

PyBudgets Allocate(const py::object& curves, const py::object& densities, double total_density,
                   double min_density, const std::string& scope, const std::string& objective,
                   const py::object& zero, const py::object& inert) {
  const BudgetArguments arguments(curves, densities, zero, inert);
  BudgetProblem problem = arguments.problem();
  problem.total_density = total_density;
  problem.min_density = min_density;
  problem.scope = ScopeOf(scope);
  problem.objective = ObjectiveOf(objective);
  Budgets budgets;
  {
    const py::gil_scoped_release release;
    budgets = AllocateBudgets(problem);
  }
  return {Own(std::move(budgets.density), {problem.num_layers, problem.num_heads}),
          budgets.mean_density, budgets.worst_recovery, budgets.total_error};
}

}  // namespace

void BindBudget(py::module_& m) {
  py::class_<PyBudgets>(m, "Budgets", "Density of every query head.")
      .def_readonly("density", &PyBudgets::density, "float64 [num_layers, num_heads], read-only")
      .def_readonly("mean_density", &PyBudgets::mean_density, "mean over heads that are not inert")
      .def_readonly("worst_recovery", &PyBudgets::worst_recovery,
                    "least recovery of a head that is not inert; None for 'min_error'")
      .def_readonly("total_error", &PyBudgets::total_error,
                    "summed error on the convex hulls; None unless 'min_error'");
  m.def("allocate_budgets", &Allocate, py::arg("curves").noconvert(),
        py::arg("densities").noconvert(), py::arg("total_density"), py::kw_only(),
        py::arg("min_density") = 0.0, py::arg("scope") = "model", py::arg("objective") = "max_min",
        py::arg("zero") = py::none(), py::arg("inert") = py::none(), "See shplb.allocate_budgets.");
}

}  // namespace shplb::bindings
