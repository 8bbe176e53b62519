// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "array.h"
#include "bind.h"
#include "shplb/replica_placement.h"

namespace shplb::bindings {

namespace {

ReplicaMethod MethodOf(const std::string& name) {
  if (name == "auto") return ReplicaMethod::kAuto;
  if (name == "exact") return ReplicaMethod::kExact;
  if (name == "greedy") return ReplicaMethod::kGreedy;
  throw InvalidArgument("method", "'" + name + "'", "'auto', 'exact' or 'greedy'");
}

struct PyReplicaPlacement {
  py::array slot_groups, rank_loads, imbalance, lower_bound;
};

PyReplicaPlacement Place(const py::object& loads, std::int64_t num_ranks, std::int64_t num_replicas,
                         const std::string& method) {
  const py::array array = RequireArray<std::int64_t>(loads, "loads", 2);
  ReplicaProblem problem;
  problem.num_layers = array.shape(0);
  problem.num_units = array.shape(1);
  problem.loads = SpanOf<std::int64_t>(array);
  problem.num_ranks = num_ranks;
  problem.num_replicas = num_replicas;
  problem.method = MethodOf(method);
  ReplicaPlacement placement;
  {
    const py::gil_scoped_release release;
    placement = PlaceReplicas(problem);
  }
  const py::ssize_t layers = array.shape(0);
  const py::ssize_t slots = array.shape(1) / num_ranks + num_replicas;
  return {Own(std::move(placement.slot_units), {layers, num_ranks, slots}),
          Own(std::move(placement.rank_loads), {layers, num_ranks}),
          Own(std::move(placement.imbalance), {layers}),
          Own(std::move(placement.lower_bound), {layers})};
}

py::array Divide(const py::object& loads, const py::object& slot_groups) {
  const py::array load = RequireArray<std::int64_t>(loads, "loads", 2);
  const py::array slots = RequireArray<std::int32_t>(slot_groups, "slot_groups", 3);
  RequireShape(slots, "slot_groups", {load.shape(0), slots.shape(1), slots.shape(2)});
  std::vector<std::int64_t> rank_loads;
  {
    const py::gil_scoped_release release;
    rank_loads = DivideReplicas(SpanOf<std::int64_t>(load), SpanOf<std::int32_t>(slots),
                                load.shape(0), load.shape(1), slots.shape(1));
  }
  return Own(std::move(rank_loads), {load.shape(0), slots.shape(1)});
}

}  // namespace

void BindReplicas(py::module_& m) {
  py::class_<PyReplicaPlacement>(m, "ReplicaPlacement", "Units in every slot, layer by layer.")
      .def_readonly("slot_groups", &PyReplicaPlacement::slot_groups,
                    "int32 [num_layers, num_ranks, num_slots], read-only")
      .def_readonly("rank_loads", &PyReplicaPlacement::rank_loads,
                    "int64 [num_layers, num_ranks], copied units divided best, read-only")
      .def_readonly("imbalance", &PyReplicaPlacement::imbalance,
                    "float64 [num_layers], max / mean over ranks, read-only")
      .def_readonly("lower_bound", &PyReplicaPlacement::lower_bound,
                    "int64 [num_layers], on the largest rank load, read-only");
  m.def("place_replicas", &Place, py::arg("loads").noconvert(), py::arg("num_ranks"),
        py::arg("num_replicas"), py::kw_only(), py::arg("method") = "auto",
        "See shplb.place_replicas.");
  m.def("divide_replicas", &Divide, py::arg("loads").noconvert(), py::arg("slot_groups"),
        "See shplb.divide_replicas.");
}

}  // namespace shplb::bindings
