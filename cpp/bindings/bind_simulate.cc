// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "array.h"
#include "bind.h"
#include "py_step_planner.h"
#include "shplb/simulate.h"

namespace shplb::bindings {

namespace {

struct PySimulation {
  py::array step_ns, dense_ns, makespan_ns, rank_ns, num_sparse, bubble;
};

PySimulation Run(PyStepPlanner& planner, const py::object& step_indptr,
                 const py::object& prefix_lens, const py::object& new_lens,
                 const std::string& mode) {
  const py::array indptr = RequireArray<std::int64_t>(step_indptr, "step_indptr", 1);
  const py::array prefix = RequireArray<std::int64_t>(prefix_lens, "prefix_lens", 1);
  const py::array fresh = RequireArray<std::int64_t>(new_lens, "new_lens", 1);
  const StepTrace trace{SpanOf<std::int64_t>(indptr), SpanOf<std::int64_t>(prefix),
                        SpanOf<std::int64_t>(fresh)};
  const StepMode step_mode = StepModeOf(mode);
  Simulation s;
  {
    const py::gil_scoped_release release;
    const std::lock_guard lock(planner.mutex);
    s = Simulate(&planner.planner, trace, step_mode);
  }
  const auto steps = static_cast<py::ssize_t>(s.step_ns.size());
  return {Own(std::move(s.step_ns), {steps}),
          Own(std::move(s.dense_ns), {steps}),
          Own(std::move(s.makespan_ns), {steps}),
          Own(std::move(s.rank_ns), {steps, planner.planner.num_ranks()}),
          Own(std::move(s.num_sparse), {steps}),
          Own(std::move(s.bubble), {steps})};
}

}  // namespace

void BindSimulate(py::module_& m) {
  py::class_<PySimulation>(m, "Simulation", "See shplb.simulate.")
      .def_readonly("step_ns", &PySimulation::step_ns, "int64 [num_steps], as planned")
      .def_readonly("dense_ns", &PySimulation::dense_ns, "int64 [num_steps], all stock")
      .def_readonly("makespan_ns", &PySimulation::makespan_ns,
                    "int64 [num_steps], sparse attention, slowest rank of every layer")
      .def_readonly("rank_ns", &PySimulation::rank_ns,
                    "int64 [num_steps, num_ranks], sparse attention of each rank")
      .def_readonly("num_sparse", &PySimulation::num_sparse, "int64 [num_steps], requests")
      .def_readonly("bubble", &PySimulation::bubble, "float64 [num_steps], 1 - mean / makespan");
  m.def("simulate", &Run, py::arg("planner"), py::arg("step_indptr"), py::arg("prefix_lens"),
        py::arg("new_lens"), py::arg("mode") = "auto", "See shplb.simulate.");
}

}  // namespace shplb::bindings
