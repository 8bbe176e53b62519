// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "array.h"
#include "bind.h"
#include "budget_arguments.h"
#include "shplb/balance_aware.h"

namespace shplb::bindings {

namespace {

struct PyBalanceAwareBudgets {
  py::array density;
  py::array group_to_rank;
  py::array slowest_load;
  double mean_density;
  double total_error;
};

PyBalanceAwareBudgets Allocate(const py::object& curves, const py::object& densities,
                               double total_density, std::int64_t num_ranks,
                               std::int64_t num_groups, double min_density,
                               const std::string& scope, const py::object& zero,
                               const py::object& inert, const py::object& group_to_rank,
                               const py::object& slowest_load) {
  const BudgetArguments arguments(curves, densities, zero, inert);
  BalanceAwareProblem problem;
  problem.budget = arguments.problem();
  problem.budget.total_density = total_density;
  problem.budget.min_density = min_density;
  problem.budget.scope = ScopeOf(scope);
  problem.num_groups = num_groups;
  problem.num_ranks = num_ranks;
  py::array ranks;
  if (!group_to_rank.is_none()) {
    ranks = RequireArray<std::int32_t>(group_to_rank, "group_to_rank", 2);
    RequireShape(ranks, "group_to_rank", {problem.budget.num_layers, num_groups});
    problem.group_to_rank = SpanOf<std::int32_t>(ranks);
  }
  py::array loads;
  if (!slowest_load.is_none()) {
    loads = RequireArray<double>(slowest_load, "slowest_load", 1);
    RequireShape(loads, "slowest_load", {problem.budget.num_layers});
    problem.slowest_load = SpanOf<double>(loads);
  }
  BalanceAwareBudgets budgets;
  {
    const py::gil_scoped_release release;
    budgets = AllocateBalanceAware(problem);
  }
  const py::ssize_t layers = problem.budget.num_layers;
  return {Own(std::move(budgets.density), {layers, problem.budget.num_heads}),
          Own(std::move(budgets.group_to_rank), {layers, num_groups}),
          Own(std::move(budgets.slowest_load), {layers}), budgets.mean_density,
          budgets.total_error};
}

}  // namespace

void BindBalanceAware(py::module_& m) {
  using Result = PyBalanceAwareBudgets;
  py::class_<Result>(m, "BalanceAwareBudgets", "Density of every query head, rank of every group.")
      .def_readonly("density", &Result::density, "float64 [num_layers, num_heads], read-only")
      .def_readonly("group_to_rank", &Result::group_to_rank,
                    "int32 [num_layers, num_groups], read-only")
      .def_readonly("slowest_load", &Result::slowest_load,
                    "float64 [num_layers], summed densities of the slowest rank, read-only")
      .def_readonly("mean_density", &Result::mean_density, "mean over heads that are not inert")
      .def_readonly("total_error", &Result::total_error, "summed error on the convex hulls");
  m.def("allocate_balance_aware", &Allocate, py::arg("curves").noconvert(),
        py::arg("densities").noconvert(), py::arg("total_density"), py::arg("num_ranks"),
        py::kw_only(), py::arg("num_groups"), py::arg("min_density") = 0.0,
        py::arg("scope") = "model", py::arg("zero") = py::none(), py::arg("inert") = py::none(),
        py::arg("group_to_rank") = py::none(), py::arg("slowest_load") = py::none(),
        "See shplb.allocate_balance_aware.");
}

}  // namespace shplb::bindings
