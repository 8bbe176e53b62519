# SPDX-License-Identifier: Apache-2.0
"""The step planner of a ServingPlan."""

import numpy as np

from shplb.plan import ServingPlan
from shplb.planner import CostModel, StepPlanner

#: Streaming multiprocessors of an H100 or H200.
NUM_CTAS = 132


def planner_of(
    plan: ServingPlan,
    keep_pages: np.ndarray,
    order: np.ndarray,
    num_ranks: int,
    *,
    rank: int = 0,
    num_ctas: int = NUM_CTAS,
    cost: CostModel | None = None,
    num_threads: int = 1,
) -> StepPlanner:
    """A planner for the plan's model and rule, with heads where ``order`` puts them.

    keep_pages: ``plan.budget_table(...).pages``; order: int32 ``[num_layers, slots of all ranks]``, the KV group in
    each slot, which is cut into ``num_ranks`` equal ranks; the rest as ``StepPlanner`` takes it.
    """
    return StepPlanner(
        num_kv_heads=plan.model.num_kv_heads,
        head_dim=plan.model.head_dim,
        keep_pages=keep_pages,
        slot_groups=np.ascontiguousarray(order.reshape(len(order), num_ranks, -1)),
        rank=rank,
        sink_pages=plan.rule.sink_pages,
        local_pages=plan.rule.local_pages,
        num_ctas=num_ctas,
        cost=cost,
        num_threads=num_threads,
    )
