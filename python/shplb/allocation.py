# SPDX-License-Identifier: Apache-2.0
"""Budgets per profiled length, loads per KV group and their placement on ranks: what a plan decides."""

from dataclasses import dataclass

import numpy as np

from shplb.budget import Objective, Scope, allocate_budgets
from shplb.placement import place_heads
from shplb.profile import HeadProfile
from shplb.replicas import place_replicas
from shplb.sparsity import LEAST_BUDGET, PAGE_SIZE, BudgetTable, SparsityRule, floor_share


@dataclass(frozen=True)
class Allocation:
    """Budgets of all heads, and which rank serves them.

    Attributes:
        budgets: float64 [num_layers, num_qo_heads, num_lengths], share of visible pages.
        error: float64 [num_lengths], output error summed over heads, on the hulls of the mean curves; None unless the
            objective is ``min_error``.
        physical_to_logical: int32 [num_layers, num_kv_heads], as in ``ServingPlan``.
        loads: int64 [num_layers, num_kv_heads], kept pages of each KV group, see :func:`group_loads`.
    """

    budgets: np.ndarray
    error: np.ndarray | None
    physical_to_logical: np.ndarray
    loads: np.ndarray


@dataclass(frozen=True)
class LengthProblem:
    """What budgets at one profiled length are found from; arrays as ``allocate_budgets`` takes them.

    The floor counts, see ``sparsity.floor_share``.
    """

    curves: np.ndarray
    densities: np.ndarray
    total_density: float
    min_density: float
    inert: np.ndarray | None


def length_problems(profile: HeadProfile, density: float, objective: Objective) -> list[LengthProblem]:
    """One problem per profiled length, shortest first; density at least the floor, error weighed by importance."""
    by_error = objective == "min_error"
    curves = np.clip(profile.mean_curves("error" if by_error else "recovery"), 0.0, None if by_error else 1.0)
    if by_error:
        curves *= profile.importance[:, :, None, None]
    inert = profile.inert if profile.model.inert_kv_heads else None
    problems = []
    for index, length in enumerate(profile.lengths):
        floor = floor_share(profile.rule, int(length))
        own = np.ascontiguousarray(curves[:, :, index])
        problems.append(LengthProblem(own, profile.densities, max(density, floor), floor, inert))
    return problems


def allocate_apart(
    profile: HeadProfile, rule: SparsityRule, density: float, tp_size: int, *, objective: Objective, scope: Scope
) -> Allocation:
    """Budgets first, at mean density ``density``; then a placement of what they cost."""
    solved = [
        allocate_budgets(
            problem.curves,
            problem.densities,
            problem.total_density,
            min_density=problem.min_density,
            scope=scope,
            objective=objective,
            inert=problem.inert,
        )
        for problem in length_problems(profile, density, objective)
    ]
    budgets = stack_lengths([one.density for one in solved], profile)
    loads = group_loads(budgets, profile, rule)
    error = np.array([one.total_error for one in solved]) if objective == "min_error" else None
    return Allocation(budgets, error, placed_order(loads, tp_size), loads)


def stack_lengths(densities: list[np.ndarray], profile: HeadProfile) -> np.ndarray:
    """Densities [num_layers, num_qo_heads] of every length as budgets: above 0, and next to it for inert heads."""
    budgets = np.clip(np.stack(densities, axis=-1), LEAST_BUDGET, 1.0)
    # Their output is 0 whatever they read, and the always-kept pages are not worth a share that grows with length.
    budgets[profile.inert] = LEAST_BUDGET
    return budgets


def placed_order(loads: np.ndarray, tp_size: int, replicas: int = 0) -> np.ndarray:
    """int32 [num_layers, num_kv_heads + tp_size * replicas]: the KV group in each slot when ``loads``, int64
    [num_layers, num_kv_heads], are placed, with ``replicas`` more slots per rank than whole groups need."""
    if replicas:
        return np.asarray(place_replicas(loads, tp_size, replicas).slot_groups).reshape(len(loads), -1)
    return slot_order(place_heads(loads, tp_size).head_to_rank)


def slot_order(group_to_rank: np.ndarray) -> np.ndarray:
    """int32 [num_layers, num_kv_heads]: the KV group in each slot; ``group_to_rank`` has the same shape."""
    return np.argsort(group_to_rank, axis=1, kind="stable").astype(np.int32)


def group_loads(budgets: np.ndarray, profile: HeadProfile, rule: SparsityRule) -> np.ndarray:
    """int64 [num_layers, num_kv_heads]: kept pages of a prefill at the longest profiled length; 0 for inert groups.

    The unit is one (query block, page) pair: on one kind of GPU the time of a group is proportional to it.
    """
    model, longest = profile.model, int(profile.lengths[-1])
    table = BudgetTable(budgets, profile.lengths, rule, longest)
    starts = np.arange(0, longest, rule.query_block)
    ends = np.minimum(starts + rule.query_block, longest)
    forced = np.array([rule.num_forced(int(a), int(b)) for a, b in zip(starts, ends, strict=True)])
    kept = table.keep(-(-ends // PAGE_SIZE), forced).astype(np.int64).sum(axis=2)
    loads = kept.reshape(model.num_layers, model.num_kv_heads, model.group_size).sum(axis=2)
    loads[:, list(model.inert_kv_heads)] = 0
    return np.asarray(loads)
