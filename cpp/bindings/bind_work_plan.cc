// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "array.h"
#include "bind.h"
#include "shplb/work_plan.h"

namespace shplb::bindings {

namespace {

WorkPlanMethod MethodOf(const std::string& name) {
  if (name == "auto") return WorkPlanMethod::kAuto;
  if (name == "longest_first") return WorkPlanMethod::kLongestFirst;
  if (name == "snake") return WorkPlanMethod::kSnake;
  throw InvalidArgument("method", "'" + name + "'", "'auto', 'longest_first' or 'snake'");
}

CostModel MakeCost(std::int64_t item_ns, std::int64_t kv_tile_ns, std::int64_t dense_kv_tile_ns,
                   std::int64_t select_pair_ps, std::int64_t select_block_ps,
                   std::int64_t pool_page_ps, std::int64_t layer_ns) {
  const CostModel cost{item_ns,         kv_tile_ns,   dense_kv_tile_ns, select_pair_ps,
                       select_block_ps, pool_page_ps, layer_ns};
  Validate(cost);
  return cost;
}

WorkPlan Plan(const py::object& qo_indptr, const py::object& qo_lens, const py::object& kv_indptr,
              const py::object& kv_lens, const py::object& head_indices, const py::object& out,
              std::int64_t num_ctas, std::int64_t head_dim, const CostModel& cost,
              const std::string& method) {
  const py::array arrays[] = {RequireArray<std::int32_t>(qo_indptr, "qo_indptr", 1),
                              RequireArray<std::int32_t>(qo_lens, "qo_lens", 1),
                              RequireArray<std::int32_t>(kv_indptr, "kv_indptr", 1),
                              RequireArray<std::int32_t>(kv_lens, "kv_lens", 1),
                              RequireArray<std::int32_t>(head_indices, "head_indices", 1)};
  WorkPlanProblem problem;
  problem.qo_indptr = SpanOf<std::int32_t>(arrays[0]);
  problem.qo_lens = SpanOf<std::int32_t>(arrays[1]);
  problem.kv_indptr = SpanOf<std::int32_t>(arrays[2]);
  problem.kv_lens = SpanOf<std::int32_t>(arrays[3]);
  problem.head_indices = SpanOf<std::int32_t>(arrays[4]);
  problem.num_ctas = num_ctas;
  problem.head_dim = head_dim;
  problem.cost = cost;
  problem.method = MethodOf(method);
  const std::span<std::byte> buffer = WritableBytes(out, "out");
  const py::gil_scoped_release release;
  thread_local WorkPlanner planner;
  return planner.Plan(problem, buffer);
}

void BindCostModel(py::module_& m) {
  const CostModel d;
  py::class_<CostModel>(m, "CostModel", "See shplb.CostModel.")
      .def(py::init(&MakeCost), py::kw_only(), py::arg("item_ns") = d.item_ns,
           py::arg("kv_tile_ns") = d.kv_tile_ns, py::arg("dense_kv_tile_ns") = d.dense_kv_tile_ns,
           py::arg("select_pair_ps") = d.select_pair_ps,
           py::arg("select_block_ps") = d.select_block_ps, py::arg("pool_page_ps") = d.pool_page_ps,
           py::arg("layer_ns") = d.layer_ns)
      .def_readonly("item_ns", &CostModel::item_ns, "per work item on one CTA")
      .def_readonly("kv_tile_ns", &CostModel::kv_tile_ns, "per KV tile of an item on one CTA")
      .def_readonly("dense_kv_tile_ns", &CostModel::dense_kv_tile_ns,
                    "per KV tile on the stock path")
      .def_readonly("select_pair_ps", &CostModel::select_pair_ps,
                    "page selection per (query head, block, visible page), whole GPU, picoseconds")
      .def_readonly("select_block_ps", &CostModel::select_block_ps,
                    "page selection per (query head, query block), whole GPU, picoseconds")
      .def_readonly("pool_page_ps", &CostModel::pool_page_ps,
                    "pooling of keys per (KV head, page of the context), whole GPU, picoseconds")
      .def_readonly("layer_ns", &CostModel::layer_ns,
                    "per layer, launches that a dense layer does not have");
}

}  // namespace

void BindWorkPlan(py::module_& m) {
  BindCostModel(m);
  py::class_<WorkPlan>(m, "WorkPlan", "Tables of one attention call.")
      .def_property_readonly(
          "plan_info",
          [](const WorkPlan& plan) {
            return Own(std::vector<std::int64_t>(plan.plan_info.begin(), plan.plan_info.end()),
                       {9});
          },
          "int64 [9], what FlashInfer takes as plan_info")
      .def_property_readonly(
          "order",
          [](const py::object& self) {
            const auto& plan = self.cast<const WorkPlan&>();
            return ViewOf(plan.order, {static_cast<py::ssize_t>(plan.order.size())}, self);
          },
          "int32 [num_items], item at each position of the tables")
      .def_property_readonly(
          "cta_loads",
          [](const py::object& self) {
            const auto& plan = self.cast<const WorkPlan&>();
            return ViewOf(plan.cta_loads, {static_cast<py::ssize_t>(plan.cta_loads.size())}, self);
          },
          "int64 [num_ctas], ns")
      .def_readonly("num_bytes", &WorkPlan::num_bytes, "bytes of the buffer in use")
      .def_readonly("makespan_ns", &WorkPlan::makespan_ns, "largest CTA load")
      .def_readonly("lower_bound_ns", &WorkPlan::lower_bound_ns, "no plan has a smaller makespan");
  m.def("work_plan_bytes", &WorkPlanBytes, py::arg("num_items"), py::arg("num_ctas"),
        "Bytes that plan_work writes.");
  m.def("plan_work", &Plan, py::arg("qo_indptr"), py::arg("qo_lens"), py::arg("kv_indptr"),
        py::arg("kv_lens"), py::arg("head_indices"), py::arg("out"), py::kw_only(),
        py::arg("num_ctas"), py::arg("head_dim"), py::arg("cost"), py::arg("method") = "auto",
        "See shplb.plan_work.");
}

}  // namespace shplb::bindings
