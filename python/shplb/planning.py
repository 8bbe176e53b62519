# SPDX-License-Identifier: Apache-2.0
"""From a HeadProfile to a ServingPlan: budgets per profiled length, loads per KV group, placement on ranks."""

import math
from functools import cached_property
from importlib.metadata import version

import msgspec

from shplb.allocation import Allocation, allocate_apart, placed_order
from shplb.allocation_together import allocate_together
from shplb.budget import Objective, Scope
from shplb.model import ModelShape
from shplb.plan import ServingPlan
from shplb.profile import HeadProfile
from shplb.recovered_mass import RecoveredMass
from shplb.weighing import Weighing, weighed


class PlanningError(ValueError):
    """A request that no plan can satisfy; the message is one sentence."""


class PlanMaker:
    """Plans of one profile for one tensor-parallel size, which differ in density only."""

    def __init__(
        self,
        profile: HeadProfile,
        *,
        tp_size: int,
        objective: Objective = "min_error",
        scope: Scope = "model",
        dense_below_tokens: int | None = None,
        dense_tail_tokens: int | None = None,
        balance_aware: bool = False,
        weighing: Weighing = "measured",
        replicas: int = 0,
    ) -> None:
        """``balance_aware`` solves budgets and placement together instead of one after the other; ``weighing``: of
        heads' output errors, see ``shplb.weighing``; ``replicas`` gives each rank so many more KV-group slots per
        layer, for second copies.

        PlanningError where ``tp_size`` does not divide the KV heads, replicas do not fit, or balance-aware budgets are
        asked for with another objective than ``min_error``, or with replicas.
        """
        if balance_aware and objective != "min_error":
            raise PlanningError(
                f"--balance-aware minimises output error, but --objective is {objective}: leave one of them out."
            )
        check_tp_size(profile.model, tp_size)
        check_replicas(profile.model, tp_size, replicas)
        if balance_aware and replicas:
            raise PlanningError("--balance-aware gives idle ranks budget, --replicas gives them work: leave one out.")
        self.replicas = replicas
        self.profile = weighed(profile, weighing)
        self.tp_size = tp_size
        self.objective: Objective = objective
        self.scope: Scope = scope
        self.balance_aware = balance_aware
        asked = {"dense_below_tokens": dense_below_tokens, "dense_tail_tokens": dense_tail_tokens}
        given = {field: tokens for field, tokens in asked.items() if tokens is not None}
        self.rule = msgspec.structs.replace(profile.rule, **given)

    @cached_property
    def _profile_hash(self) -> str:
        return self.profile.curves_hash

    def allocate(self, density: float) -> Allocation:
        """Budgets and placement; PlanningError where ``density`` is not in (0, 1]."""
        if not 0.0 < density <= 1.0:
            raise PlanningError(f"density is {density}, expected a share of attention in (0, 1].")
        if self.balance_aware:
            return allocate_together(self.profile, self.rule, density, self.tp_size, scope=self.scope)
        return allocate_apart(
            self.profile, self.rule, density, self.tp_size, objective=self.objective, scope=self.scope
        )

    def plan(self, density: float) -> ServingPlan:
        """The plan at mean density ``density``; errors as for :meth:`allocate`."""
        return self.plan_of(self.allocate(density), density)

    def plan_of(self, made: Allocation, density: float) -> ServingPlan:
        """The plan of what :meth:`allocate` made at ``density``."""
        return ServingPlan(
            model=self.profile.model,
            fingerprint=self.profile.fingerprint,
            tp_size=self.tp_size,
            rule=self.rule,
            objective=self.objective,
            scope=self.scope,
            density=density,
            profile_hash=self._profile_hash,
            versions={"shplb": version("shplb")},
            lengths=self.profile.lengths,
            budgets=made.budgets,
            physical_to_logical=placed_order(made.loads, self.tp_size, self.replicas)
            if self.replicas
            else made.physical_to_logical,
            loads=made.loads,
            balance_aware=self.balance_aware,
            recovery=RecoveredMass(self.profile, self.rule).served(made.budgets),
            replicas=self.replicas,
        )


def make_plan(
    profile: HeadProfile,
    *,
    tp_size: int,
    density: float,
    objective: Objective = "min_error",
    scope: Scope = "model",
    dense_below_tokens: int | None = None,
    balance_aware: bool = False,
    weighing: Weighing = "measured",
    replicas: int = 0,
) -> ServingPlan:
    """Budgets at mean density ``density`` and a placement over ``tp_size`` ranks; see :class:`PlanMaker`.

    Raises:
        PlanningError: tp_size does not divide the KV heads, density is not in (0, 1], or balance-aware budgets are
            asked for with another objective than ``min_error``.
    """
    maker = PlanMaker(
        profile,
        tp_size=tp_size,
        objective=objective,
        scope=scope,
        dense_below_tokens=dense_below_tokens,
        balance_aware=balance_aware,
        weighing=weighing,
        replicas=replicas,
    )
    return maker.plan(density)


def check_tp_size(model: ModelShape, tp_size: int) -> None:
    """PlanningError unless ``tp_size`` ranks can hold equal counts of KV heads."""
    if tp_size < 1 or model.num_kv_heads % tp_size:
        raise PlanningError(
            f"{model.num_kv_heads} KV heads can't be placed on {tp_size} ranks in equal counts: choose a --tp that "
            "divides them, or pad the model first (shplb pad)."
        )


def check_replicas(model: ModelShape, tp_size: int, replicas: int) -> None:
    """PlanningError unless each of ``tp_size`` ranks can hold ``replicas`` more groups without a third copy."""
    most = model.num_kv_heads // tp_size if tp_size > 1 else 0
    if not 0 <= replicas <= most:
        raise PlanningError(
            f"--replicas is {replicas}, expected 0 to {most}: on {tp_size} rank(s) no more of the "
            f"{model.num_kv_heads} KV groups can have a second copy."
        )


def count_bound(num_kv_heads: int, num_inert: int, tp_size: int) -> float:
    """Least imbalance that equal loads per real KV group allow, from counts alone: 3 groups on 2 ranks give 1.33."""
    real = num_kv_heads - num_inert
    return math.ceil(real / tp_size) / (real / tp_size)
