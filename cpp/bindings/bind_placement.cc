// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "array.h"
#include "bind.h"
#include "shplb/placement.h"

namespace shplb::bindings {

namespace {

PlacementMethod MethodOf(const std::string& name) {
  if (name == "auto") return PlacementMethod::kAuto;
  if (name == "exact") return PlacementMethod::kExact;
  if (name == "lpt_swap") return PlacementMethod::kLptSwap;
  if (name == "lpt") return PlacementMethod::kLpt;
  if (name == "snake") return PlacementMethod::kSnake;
  if (name == "contiguous") return PlacementMethod::kContiguous;
  throw InvalidArgument("method", "'" + name + "'",
                        "'auto', 'exact', 'lpt_swap', 'lpt', 'snake' or 'contiguous'");
}

struct PyPlacement {
  py::array head_to_rank;
  py::array rank_loads;
  py::array imbalance;
  py::array lower_bound;
};

std::vector<double> InUnits(const std::vector<std::int64_t>& scaled, double unit) {
  std::vector<double> values;
  values.reserve(scaled.size());
  for (const std::int64_t value : scaled) values.push_back(static_cast<double>(value) * unit);
  return values;
}

PyPlacement Place(const py::object& loads, std::int64_t num_ranks, bool equal_count,
                  const std::string& method) {
  PlacementProblem problem;
  problem.num_ranks = num_ranks;
  problem.equal_count = equal_count;
  problem.method = MethodOf(method);
  const bool measured =
      py::isinstance<py::array>(loads) &&
      py::reinterpret_borrow<py::array>(loads).dtype().equal(py::dtype::of<double>());
  const py::array array = measured ? RequireArray<double>(loads, "loads", 2)
                                   : RequireArray<std::int64_t>(loads, "loads", 2);
  problem.num_layers = array.shape(0);
  problem.num_units = array.shape(1);
  RequireInRange("num_layers", problem.num_layers, 1, kMaxPlacementLayers);
  RequireInRange("num_units", problem.num_units, 1, kMaxUnits);
  ScaledLoads scaled;
  Placement placement;
  {
    const py::gil_scoped_release release;
    if (measured) {
      scaled = ScaleLoads(SpanOf<double>(array), problem.num_units);
      problem.loads = scaled.loads;
    } else {
      problem.loads = SpanOf<std::int64_t>(array);
    }
    placement = PlaceHeads(problem);
  }
  const py::ssize_t layers = array.shape(0);
  PyPlacement result{Own(std::move(placement.head_to_rank), {layers, array.shape(1)}),
                     {},
                     Own(std::move(placement.imbalance), {layers}),
                     {}};
  if (measured) {
    result.rank_loads = Own(InUnits(placement.rank_loads, scaled.unit), {layers, num_ranks});
    result.lower_bound = Own(InUnits(placement.lower_bound, scaled.unit), {layers});
  } else {
    result.rank_loads = Own(std::move(placement.rank_loads), {layers, num_ranks});
    result.lower_bound = Own(std::move(placement.lower_bound), {layers});
  }
  return result;
}

}  // namespace

void BindPlacement(py::module_& m) {
  py::class_<PyPlacement>(m, "Placement", "Rank of every unit, layer by layer.")
      .def_readonly("head_to_rank", &PyPlacement::head_to_rank,
                    "int32 [num_layers, num_units], read-only")
      .def_readonly("rank_loads", &PyPlacement::rank_loads,
                    "[num_layers, num_ranks] in the dtype and unit of the loads, read-only")
      .def_readonly("imbalance", &PyPlacement::imbalance,
                    "float64 [num_layers], max / mean over ranks, read-only")
      .def_readonly("lower_bound", &PyPlacement::lower_bound,
                    "[num_layers] in the dtype and unit of the loads, read-only");
  m.def("place_heads", &Place, py::arg("loads").noconvert(), py::arg("num_ranks"), py::kw_only(),
        py::arg("equal_count") = true, py::arg("method") = "auto", "See shplb.place_heads.");
}

}  // namespace shplb::bindings
