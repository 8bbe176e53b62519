// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>

#include "array.h"
#include "bind.h"
#include "py_step_planner.h"

namespace shplb::bindings {

namespace {

using Lengths = std::span<const std::int64_t>;
using Marks = std::span<const std::uint8_t>;

/// Plan with the extents its arrays have; never changed once Python sees it.
struct PyStepPlan : StepPlan {
  py::ssize_t layers = 0;
  py::ssize_t ranks = 0;
  py::ssize_t list_heads = 0;
};

std::unique_ptr<PyStepPlanner> Make(std::int64_t num_kv_heads, std::int64_t head_dim,
                                    const py::object& keep_pages, const py::object& slot_groups,
                                    std::int64_t rank, std::int64_t sink_pages,
                                    std::int64_t local_pages, bool shared_lists,
                                    std::int64_t num_ctas, const CostModel& cost,
                                    std::int64_t num_threads) {
  const py::array keep = RequireArray<std::int32_t>(keep_pages, "keep_pages", 3);
  const py::array slots = RequireArray<std::int32_t>(slot_groups, "slot_groups", 3);
  RequireShape(slots, "slot_groups", {keep.shape(0), slots.shape(1), slots.shape(2)});
  StepPlannerConfig config;
  config.num_layers = keep.shape(0);
  config.num_qo_heads = keep.shape(1);
  config.num_kv_heads = num_kv_heads;
  config.head_dim = head_dim;
  config.max_pages = keep.shape(2) - 1;
  config.keep_pages = SpanOf<std::int32_t>(keep);
  config.num_ranks = slots.shape(1);
  config.num_slots = slots.shape(2);
  config.slot_groups = SpanOf<std::int32_t>(slots);
  config.rank = rank;
  config.sink_pages = sink_pages;
  config.local_pages = local_pages;
  config.shared_lists = shared_lists;
  config.num_ctas = num_ctas;
  config.cost = cost;
  config.num_threads = num_threads;
  const py::gil_scoped_release release;
  return std::make_unique<PyStepPlanner>(config);
}

/// Runs `solve(prefix_lens, new_lens, stock, plan)` without the GIL.
template <class Solve>
std::unique_ptr<PyStepPlan> Run(PyStepPlanner& self, const py::object& prefix_lens,
                                const py::object& new_lens, const py::object& stock, Solve solve) {
  const py::array prefix = RequireArray<std::int64_t>(prefix_lens, "prefix_lens", 1);
  const py::array fresh = RequireArray<std::int64_t>(new_lens, "new_lens", 1);
  const py::array marks = stock.is_none() ? py::array_t<std::uint8_t>(0)
                                          : RequireArray<std::uint8_t>(stock, "stock", 1);
  auto plan = std::make_unique<PyStepPlan>();
  plan->layers = self.planner.num_layers();
  plan->ranks = self.planner.num_ranks();
  plan->list_heads = self.planner.num_list_heads();
  const py::gil_scoped_release release;
  const std::lock_guard lock(self.mutex);
  solve(SpanOf<std::int64_t>(prefix), SpanOf<std::int64_t>(fresh), SpanOf<std::uint8_t>(marks),
        plan.get());
  return plan;
}

std::unique_ptr<PyStepPlan> Plan(PyStepPlanner& self, const py::object& prefix_lens,
                                 const py::object& new_lens, const py::object& out,
                                 const std::string& mode, const py::object& stock) {
  const StepMode step_mode = StepModeOf(mode);
  const std::span<std::byte> buffer = WritableBytes(out, "out");
  return Run(self, prefix_lens, new_lens, stock,
             [&](Lengths prefix, Lengths fresh, Marks marks, StepPlan* plan) {
               self.planner.Plan(prefix, fresh, step_mode, buffer, plan, marks);
             });
}

std::unique_ptr<PyStepPlan> Predict(PyStepPlanner& self, const py::object& prefix_lens,
                                    const py::object& new_lens, const std::string& mode,
                                    const py::object& stock) {
  const StepMode step_mode = StepModeOf(mode);
  return Run(self, prefix_lens, new_lens, stock,
             [&](Lengths prefix, Lengths fresh, Marks marks, StepPlan* plan) {
               self.planner.Predict(prefix, fresh, step_mode, plan, marks);
             });
}

py::array DecodeLoads(PyStepPlanner& self, const py::object& kv_lens) {
  const py::array lens = RequireArray<std::int64_t>(kv_lens, "kv_lens", 1);
  const py::ssize_t layers = self.planner.num_layers();
  const py::ssize_t ranks = self.planner.num_ranks();
  std::vector<std::int64_t> loads(static_cast<std::size_t>(layers * ranks));
  {
    const py::gil_scoped_release release;
    const std::lock_guard lock(self.mutex);
    self.planner.DecodeLoads(SpanOf<std::int64_t>(lens), loads);
  }
  return Own(std::move(loads), {layers, ranks});
}

void SetRankSpeeds(PyStepPlanner& self, const py::object& speeds) {
  const py::array values = RequireArray<std::int64_t>(speeds, "speeds", 1);
  const py::gil_scoped_release release;
  const std::lock_guard lock(self.mutex);
  self.planner.SetRankSpeeds(SpanOf<std::int64_t>(values));
}

/// Property that views one vector of the plan in a shape made from its extents.
template <class T, class Shape>
auto View(std::vector<T> StepPlan::* field, Shape shape) {
  return [field, shape](const py::object& self) {
    const auto& plan = self.cast<const PyStepPlan&>();
    const std::vector<T>& values = plan.*field;
    std::vector<py::ssize_t> extents = shape(plan);
    if (values.empty()) extents[0] = 0;
    return ViewOf(values, extents, self);
  };
}

void BindStepPlan(py::module_& m) {
  using Shape = std::vector<py::ssize_t>;
  const auto requests = [](const PyStepPlan& p) {
    return Shape{static_cast<py::ssize_t>(p.sparse.size())};
  };
  const auto layers = [](const PyStepPlan& p) { return Shape{p.layers}; };
  const auto ranks = [](const PyStepPlan& p) { return Shape{p.layers, p.ranks}; };
  const auto infos = [](const PyStepPlan& p) { return Shape{p.layers, 9}; };
  const auto owned = [](const PyStepPlan& p) { return Shape{p.layers, p.list_heads, 2}; };
  py::class_<PyStepPlan>(m, "StepPlan", "See shplb.StepPlan.")
      .def_property_readonly("sparse", View(&StepPlan::sparse, requests), "uint8 [num_requests]")
      .def_readonly("num_blocks", &PyStepPlan::num_blocks, "query blocks of sparse requests")
      .def_readonly("num_lists", &PyStepPlan::num_lists, "page lists per layer")
      .def_readonly("num_items", &PyStepPlan::num_items, "work items per layer, at most")
      .def_readonly("num_bytes", &PyStepPlan::num_bytes, "bytes of the buffer in use")
      .def_readonly("block_request_offset", &PyStepPlan::block_request_offset,
                    "bytes; int32 [num_blocks], index into the batch")
      .def_readonly("block_first_row_offset", &PyStepPlan::block_first_row_offset,
                    "bytes; int32 [num_blocks], position in the request")
      .def_readonly("block_qo_indptr_offset", &PyStepPlan::block_qo_indptr_offset,
                    "bytes; int32 [num_blocks], row of q")
      .def_readonly("block_qo_len_offset", &PyStepPlan::block_qo_len_offset,
                    "bytes; int32 [num_blocks], rows")
      .def_property_readonly("plan_info", View(&StepPlan::plan_info, infos),
                             "int64 [num_layers, 9], FlashInfer's plan_info of each layer")
      .def_property_readonly("list_indptr_offset", View(&StepPlan::list_indptr_offset, layers),
                             "int64 [num_layers], bytes; int32 [num_lists + 1], pages")
      .def_property_readonly("list_pages", View(&StepPlan::list_pages, layers),
                             "int64 [num_layers], page table entries")
      .def_property_readonly("cta_makespan_ns", View(&StepPlan::cta_makespan_ns, layers),
                             "int64 [num_layers], this rank as scheduled")
      .def_property_readonly("rank_makespan_ns", View(&StepPlan::rank_makespan_ns, ranks),
                             "int64 [num_layers, num_ranks], predicted, at the ranks' speeds")
      .def_property_readonly("owned_blocks", View(&StepPlan::owned_blocks, owned),
                             "int32 [num_layers, list heads, 2], half-open block ranges")
      .def_readonly("step_ns", &PyStepPlan::step_ns,
                    "predicted attention time as planned, nominal speed")
      .def_readonly("dense_ns", &PyStepPlan::dense_ns,
                    "the same with every request on the stock path");
}

}  // namespace

void BindStepPlanner(py::module_& m) {
  BindStepPlan(m);
  m.attr("NOMINAL_SPEED") = kNominalSpeed;
  m.attr("LEAST_SPEED") = kLeastSpeed;
  m.attr("MOST_SPEED") = kMostSpeed;
  py::class_<PyStepPlanner>(m, "StepPlanner", "See shplb.StepPlanner.")
      .def(py::init(&Make), py::kw_only(), py::arg("num_kv_heads"), py::arg("head_dim"),
           py::arg("keep_pages"), py::arg("slot_groups"), py::arg("rank"),
           py::arg("sink_pages") = 1, py::arg("local_pages") = 1, py::arg("shared_lists") = false,
           py::arg("num_ctas") = 132, py::arg("cost") = CostModel{}, py::arg("num_threads") = 1)
      .def(
          "buffer_bytes",
          [](const PyStepPlanner& self, std::int64_t num_requests, std::int64_t num_new_tokens) {
            return self.planner.BufferBytes(num_requests, num_new_tokens);
          },
          py::arg("num_requests"), py::arg("num_new_tokens"),
          "Bytes that suffice for any step of this size.")
      .def("plan", &Plan, py::arg("prefix_lens"), py::arg("new_lens"), py::arg("out"),
           py::arg("mode") = "auto", py::arg("stock") = py::none(), "Plan one step into out.")
      .def("predict", &Predict, py::arg("prefix_lens"), py::arg("new_lens"),
           py::arg("mode") = "auto", py::arg("stock") = py::none(), "Predictions of plan alone.")
      .def("set_rank_speeds", &SetRankSpeeds, py::arg("speeds"),
           "Speeds of the ranks from the next step on, in 1/NOMINAL_SPEED.")
      .def("decode_loads", &DecodeLoads, py::arg("kv_lens"),
           "int64 [num_layers, num_ranks], summed CTA time (ns) of sparse decoding.");
}

}  // namespace shplb::bindings
