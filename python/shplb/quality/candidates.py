# SPDX-License-Identifier: Apache-2.0
"""Plans to compare: budget objectives and scopes at equal *computed* density."""

from dataclasses import dataclass

from shplb.budget import Objective, Scope
from shplb.plan import ServingPlan
from shplb.planning import PlanMaker, PlanningError
from shplb.profile import HeadProfile
from shplb.sglang.metadata import StepBudgets
from shplb.steps import STEPS, first_step

#: (objective, scope): the default first; uniform has no scope to speak of.
WAYS: tuple[tuple[Objective, Scope], ...] = (
    ("min_error", "model"),
    ("min_error", "layer"),
    ("max_min", "model"),
    ("max_min", "layer"),
    ("uniform", "model"),
)
DEFAULT = WAYS[0]


@dataclass(frozen=True)
class Candidate:
    """A plan and the share of attention that it computes on a prompt of the compared length."""

    objective: Objective
    scope: Scope
    plan: ServingPlan
    computed_density: float

    @property
    def name(self) -> str:
        return "uniform" if self.objective == "uniform" else f"{self.objective}, per {self.scope}"

    @property
    def is_default(self) -> bool:
        return (self.objective, self.scope) == DEFAULT


def make_candidates(
    profile: HeadProfile, ways: tuple[tuple[Objective, Scope], ...], computed: float, *, tokens: int, tp_size: int
) -> list[Candidate]:
    """One plan per way whose computed density on a prompt of ``tokens`` is the largest up to ``computed``.

    Raises:
        PlanningError: the pages that are always kept are more than that.
    """
    return [_candidate(profile, objective, scope, computed, tokens, tp_size) for objective, scope in ways]


def _candidate(
    profile: HeadProfile, objective: Objective, scope: Scope, computed: float, tokens: int, tp_size: int
) -> Candidate:
    maker = PlanMaker(profile, tp_size=tp_size, objective=objective, scope=scope)
    if not 0.0 < computed <= 1.0:
        raise PlanningError(f"a density is {computed}, expected a share of attention in (0, 1].")
    least = computed_density(maker.plan(1 / STEPS), tokens)
    if least > computed:
        raise PlanningError(
            f"a density of {computed:g} can't be computed at {tokens} tokens: sink, diagonal and floor pages and dense "
            f"blocks make {least:.3f} at least; ask for more, or compare longer prompts."
        )
    if computed_density(maker.plan(1.0), tokens) <= computed:
        step = STEPS
    else:
        step = first_step(lambda density: computed_density(maker.plan(density), tokens) > computed) - 1
    plan = maker.plan(step / STEPS)
    return Candidate(objective, scope, plan, computed_density(plan, tokens))


def computed_density(plan: ServingPlan, tokens: int) -> float:
    """Kept over causal (query row, page) pairs of one prompt of ``tokens``, padding left out."""
    step = StepBudgets(plan.budget_table(tokens), [0], [tokens])
    return float(step.group_loads(plan).sum() / step.causal_row_pages(plan))
