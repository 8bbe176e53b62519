# SPDX-License-Identifier: Apache-2.0
"""From a HeadProfile to a ServingPlan: budgets per profiled length, loads per KV group, placement on ranks."""

import math
from importlib.metadata import version

import msgspec
import numpy as np

from shplb.budget import Objective, Scope, allocate_budgets
from shplb.container import content_hash
from shplb.model import ModelShape
from shplb.placement import place_heads
from shplb.plan import ServingPlan
from shplb.profile import HeadProfile
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages


class PlanningError(ValueError):
    """A request that no plan can satisfy; the message is one sentence."""


def make_plan(
    profile: HeadProfile,
    *,
    tp_size: int,
    density: float,
    objective: Objective = "min_error",
    scope: Scope = "model",
    dense_below_tokens: int | None = None,
) -> ServingPlan:
    """Budgets at mean density ``density`` and a placement over ``tp_size`` ranks.

    Raises:
        PlanningError: tp_size does not divide the KV heads, or density is not in (0, 1].
    """
    model = profile.model
    if not 0.0 < density <= 1.0:
        raise PlanningError(f"density is {density}, expected a share of attention in (0, 1].")
    check_tp_size(model, tp_size)
    rule = profile.rule
    if dense_below_tokens is not None:
        rule = msgspec.structs.replace(rule, dense_below_tokens=dense_below_tokens)
    budgets = head_budgets(profile, density, objective=objective, scope=scope)
    loads = group_loads(budgets, profile, rule)
    return ServingPlan(
        model=model,
        fingerprint=profile.fingerprint,
        tp_size=tp_size,
        rule=rule,
        objective=objective,
        scope=scope,
        density=density,
        profile_hash=content_hash({name: getattr(profile, name) for name in ("error", "recovery", "importance")}, {}),
        versions={"shplb": version("shplb")},
        lengths=profile.lengths,
        budgets=budgets,
        physical_to_logical=placed_order(loads, tp_size),
        loads=loads,
    )


def check_tp_size(model: ModelShape, tp_size: int) -> None:
    """PlanningError unless ``tp_size`` ranks can hold equal counts of KV heads."""
    if tp_size < 1 or model.num_kv_heads % tp_size:
        raise PlanningError(
            f"{model.num_kv_heads} KV heads can't be placed on {tp_size} ranks in equal counts: choose a --tp that "
            "divides them, or pad the model first (shplb pad)."
        )


def placed_order(loads: np.ndarray, tp_size: int) -> np.ndarray:
    """int32 [num_layers, num_kv_heads]: the KV group in each slot when ``loads`` (same shape, int64) are placed."""
    ranks = place_heads(loads, tp_size).head_to_rank
    return np.argsort(ranks, axis=1, kind="stable").astype(np.int32)


def head_budgets(profile: HeadProfile, density: float, *, objective: Objective, scope: Scope) -> np.ndarray:
    """float64 [num_layers, num_qo_heads, num_lengths]: one allocation per profiled length, inert heads at the floor.

    The floor counts: at length n a block sees about 3n/4 tokens, of which ``floor_pages`` are always kept.
    """
    curves = profile.mean_curves("error" if objective == "min_error" else "recovery")
    if objective == "min_error":
        curves *= profile.importance[:, :, None, None]
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


def count_bound(num_kv_heads: int, num_inert: int, tp_size: int) -> float:
    """Least imbalance that equal loads per real KV group allow, from counts alone: 3 groups on 2 ranks give 1.33."""
    real = num_kv_heads - num_inert
    return math.ceil(real / tp_size) / (real / tp_size)
