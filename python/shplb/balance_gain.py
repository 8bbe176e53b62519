# SPDX-License-Identifier: Apache-2.0
"""What solving budgets and placement together gains over solving them apart, as predicted from the profile."""

from dataclasses import dataclass

from shplb.allocation import Allocation
from shplb.device import H200, Device
from shplb.plan import ServingPlan
from shplb.planning import PlanMaker
from shplb.prediction import placed_ms
from shplb.steps import STEPS, first_step


@dataclass(frozen=True)
class Side:
    """One way to solve, at the longest profiled length.

    Attributes:
        error: output error summed over heads, on the hulls of the profile's mean curves.
        slowest_pages: kept pages of the slowest rank, summed over layers, of a prefill at the longest profiled length.
        mean_density: over heads that are not inert.
        attention_ms: predicted for the prompt that was asked for.
    """

    error: float
    slowest_pages: int
    mean_density: float
    attention_ms: float


@dataclass(frozen=True)
class BalanceGain:
    """Apart and together at the same asked density, and the density at which apart comes down to the same error
    (None where not even density 1 does)."""

    tokens: int
    apart: Side
    together: Side
    density_for_same_error: float | None
    same_error: Side | None


def balance_gain(maker: PlanMaker, made: Allocation, density: float, tokens: int, device: Device = H200) -> BalanceGain:
    """Compare what a balance-aware ``maker`` ``made`` at ``density`` with the two solved apart.

    ``tokens``: length of the prompt whose attention is predicted.
    """
    apart = PlanMaker(
        maker.profile,
        tp_size=maker.tp_size,
        scope=maker.scope,
        dense_below_tokens=maker.rule.dense_below_tokens,
        dense_tail_tokens=maker.rule.dense_tail_tokens,
    )
    wanted = _last_error(made)

    def side(source: PlanMaker, allocation: Allocation, at: float) -> Side:
        plan = source.plan_of(allocation, at)
        time_ms = placed_ms(plan, tokens, device)
        return Side(_last_error(allocation), _slowest_pages(plan), _mean(source, plan), time_ms)

    same, same_side = None, None
    if _last_error(apart.allocate(1.0)) <= wanted:
        step = first_step(lambda at: _last_error(apart.allocate(at)) <= wanted)
        same, same_side = step / STEPS, side(apart, apart.allocate(step / STEPS), step / STEPS)
    return BalanceGain(
        tokens=tokens,
        apart=side(apart, apart.allocate(density), density),
        together=side(maker, made, density),
        density_for_same_error=same,
        same_error=same_side,
    )


def _last_error(made: Allocation) -> float:
    assert made.error is not None  # the objective is min_error
    return float(made.error[-1])


def _slowest_pages(plan: ServingPlan) -> int:
    return int(plan.rank_loads(plan.loads).max(axis=1).sum())


def _mean(maker: PlanMaker, plan: ServingPlan) -> float:
    return float(plan.budgets[~maker.profile.inert][:, -1].mean())
