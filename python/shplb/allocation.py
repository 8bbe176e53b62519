# SPDX-License-Identifier: Apache-2.0
"""Budgets per profiled length, loads per KV group and their placement on ranks: what a plan decides."""

from dataclasses import dataclass

import numpy as np

from shplb.budget import Objective, Scope, allocate_budgets
from shplb.placement import place_heads
from shplb.profile import HeadProfile
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages


@dataclass(frozen=True)
class Allocation:
    """Budgets of all heads, and which rank serves them.

    Attributes:
        budgets: float64 [num_layers, num_qo_heads, num_lengths], share of visible pages.
        physical_to_logical: int32 [num_layers, num_kv_heads], as in ``ServingPlan``.
        loads: int64 [num_layers, num_kv_heads], kept pages of each KV group, see :func:`group_loads`.
    """

    budgets: np.ndarray
    physical_to_logical: np.ndarray
    loads: np.ndarray


def allocate_apart(
    profile: HeadProfile, rule: SparsityRule, density: float, tp_size: int, *, objective: Objective, scope: Scope
) -> Allocation:
    """Budgets first, at mean density ``density``; then a placement of what they cost."""
    budgets = head_budgets(profile, density, objective=objective, scope=scope)
    loads = group_loads(budgets, profile, rule)
    return Allocation(budgets, placed_order(loads, tp_size), loads)


def placed_order(loads: np.ndarray, tp_size: int) -> np.ndarray:
    """int32 [num_layers, num_kv_heads]: the KV group in each slot when ``loads`` (same shape, int64) are placed."""
    ranks = place_heads(loads, tp_size).head_to_rank
    return np.argsort(ranks, axis=1, kind="stable").astype(np.int32)


def head_budgets(profile: HeadProfile, density: float, *, objective: Objective, scope: Scope) -> np.ndarray:
    """float64 [num_layers, num_qo_heads, num_lengths]: one allocation per profiled length, inert heads at the floor.

    The floor counts: at length n a block sees about 3n/4 tokens, of which ``floor_pages`` are always kept.
    """
    curves = profile.mean_curves("error" if objective == "min_error" else "recovery")
    budgets = np.empty(curves.shape[:3])
    inert = profile.inert if profile.model.inert_kv_heads else None
    for index, length in enumerate(profile.lengths):
        floor = min(profile.rule.floor_pages / num_pages(3 * int(length) // 4), 1.0)
        budgets[:, :, index] = allocate_budgets(
            np.ascontiguousarray(np.clip(curves[:, :, index], 0.0, None if objective == "min_error" else 1.0)),
            profile.densities,
            max(density, floor),
            min_density=floor,
            scope=scope,
            objective=objective,
            inert=inert,
        ).density
    return np.clip(budgets, 1e-6, 1.0)


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
