// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <string>

#include "array.h"
#include "bind.h"
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

BudgetScope ScopeOf(const std::string& name) {
  if (name == "model") return BudgetScope::kModel;
  if (name == "layer") return BudgetScope::kLayer;
  throw InvalidArgument("scope", "'" + name + "'", "'model' or 'layer'");
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
  const py::array points = RequireArray<double>(densities, "densities", 1);
  const py::array values = RequireArray<double>(curves, "curves", 3);
  RequireShape(values, "curves", {values.shape(0), values.shape(1), points.shape(0)});
  BudgetProblem problem;
  problem.num_layers = values.shape(0);
  problem.num_heads = values.shape(1);
  problem.curves = SpanOf<double>(values);
  problem.densities = SpanOf<double>(points);
  problem.total_density = total_density;
  problem.min_density = min_density;
  problem.scope = ScopeOf(scope);
  problem.objective = ObjectiveOf(objective);
  py::array zero_array;
  if (!zero.is_none()) {
    zero_array = RequireArray<double>(zero, "zero", 2);
    RequireShape(zero_array, "zero", {values.shape(0), values.shape(1)});
    problem.zero = SpanOf<double>(zero_array);
  }
  py::array inert_array;
  if (!inert.is_none()) {
    inert_array = RequireArray<bool>(inert, "inert", 2);
    RequireShape(inert_array, "inert", {values.shape(0), values.shape(1)});
    problem.inert = {static_cast<const std::uint8_t*>(inert_array.data()),
                     static_cast<std::size_t>(inert_array.size())};
  }
  Budgets budgets;
  {
    const py::gil_scoped_release release;
    budgets = AllocateBudgets(problem);
  }
  return {Own(std::move(budgets.density), {values.shape(0), values.shape(1)}), budgets.mean_density,
          budgets.worst_recovery, budgets.total_error};
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
