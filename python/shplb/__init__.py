# SPDX-License-Identifier: Apache-2.0
"""S-HPLB for SGLang: head-adaptive sparse attention, balanced over tensor-parallel GPUs.

Importing this package needs numpy only: no torch, CUDA or SGLang.
"""

from shplb._core import Infeasible, InvalidArgument
from shplb.balance_aware import BalanceAwareBudgets, allocate_balance_aware
from shplb.budget import Budgets, allocate_budgets
from shplb.placement import Placement, place_heads
from shplb.planner import CostModel, StepPlan, StepPlanner, WorkPlan, plan_work, work_plan_bytes
from shplb.replicas import ReplicaPlacement, divide_replicas, place_replicas
from shplb.simulator import Simulation, simulate

__version__ = "0.1.0"

__all__ = [
    "BalanceAwareBudgets",
    "Budgets",
    "CostModel",
    "Infeasible",
    "InvalidArgument",
    "Placement",
    "ReplicaPlacement",
    "Simulation",
    "StepPlan",
    "StepPlanner",
    "WorkPlan",
    "__version__",
    "allocate_balance_aware",
    "allocate_budgets",
    "divide_replicas",
    "place_heads",
    "place_replicas",
    "plan_work",
    "simulate",
    "work_plan_bytes",
]
