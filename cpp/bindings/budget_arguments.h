// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "array.h"
#include "shplb/budget.h"

namespace shplb::bindings {

inline BudgetScope ScopeOf(const std::string& name) {
  if (name == "model") return BudgetScope::kModel;
  if (name == "layer") return BudgetScope::kLayer;
  throw InvalidArgument("scope", "'" + name + "'", "'model' or 'layer'");
}

/// The arrays of a budget problem, checked and kept alive.
class BudgetArguments {
 public:
  BudgetArguments(const py::object& curves, const py::object& densities, const py::object& zero,
                  const py::object& inert)
      : points_(RequireArray<double>(densities, "densities", 1)),
        values_(RequireArray<double>(curves, "curves", 3)) {
    RequireShape(values_, "curves", {values_.shape(0), values_.shape(1), points_.shape(0)});
    problem_.num_layers = values_.shape(0);
    problem_.num_heads = values_.shape(1);
    problem_.curves = SpanOf<double>(values_);
    problem_.densities = SpanOf<double>(points_);
    if (!zero.is_none()) {
      zero_ = RequireArray<double>(zero, "zero", 2);
      RequireShape(zero_, "zero", {values_.shape(0), values_.shape(1)});
      problem_.zero = SpanOf<double>(zero_);
    }
    if (!inert.is_none()) {
      inert_ = RequireArray<bool>(inert, "inert", 2);
      RequireShape(inert_, "inert", {values_.shape(0), values_.shape(1)});
      problem_.inert = {static_cast<const std::uint8_t*>(inert_.data()),
                        static_cast<std::size_t>(inert_.size())};
    }
  }

  /// Views of the arrays; valid while this object lives. Objective, scope and totals are unset.
  const BudgetProblem& problem() const { return problem_; }

 private:
  py::array points_, values_, zero_, inert_;
  BudgetProblem problem_;
};

}  // namespace shplb::bindings
