# SPDX-License-Identifier: Apache-2.0
"""The density that a target asks for: recovered attention mass, or attention time of a prompt."""

import math

from shplb.device import H200, Device
from shplb.planning import PlanMaker, PlanningError
from shplb.prediction import CHUNK_TOKENS, check_tokens, placed_ms
from shplb.recovered_mass import RecoveredMass
from shplb.steps import STEPS, first_step


def density_for_recovery(maker: PlanMaker, recovery: float) -> float:
    """Least density at which heads recover ``recovery`` of their attention mass on average, at each profiled length.

    Lengths that are served dense don't count. By bisection over whole steps, with the maker's own budgets at every
    density tried.

    Raises:
        PlanningError: ``recovery`` is not in (0, 1].
    """
    if not 0.0 < recovery <= 1.0:
        raise PlanningError(f"--recovery is {recovery}, expected a share of attention mass in (0, 1].")
    curves = RecoveredMass(maker.profile, maker.rule)
    return first_step(lambda density: curves.least_mean(maker.allocate(density).budgets) >= recovery) / STEPS


def density_for_latency(maker: PlanMaker, budget_ms: float, tokens: int | None = None, device: Device = H200) -> float:
    """Largest density at which a prompt's attention is predicted to take ``budget_ms`` or less.

    The prompt has ``tokens`` tokens (default: the longest profiled length), see ``shplb.prediction``.

    Raises:
        PlanningError: not even the least density is fast enough, or ``budget_ms`` is no time.
        ValueError: ``tokens`` is out of range.
    """
    if not 0.0 < budget_ms < float("inf"):
        raise PlanningError(f"--latency-budget is {budget_ms}, expected milliseconds above 0.")
    tokens = check_tokens(int(maker.profile.lengths[-1]) if tokens is None else tokens)

    def time_at(density: float) -> float:
        return placed_ms(maker.plan(density), tokens, device)

    if time_at(1.0) <= budget_ms:
        return 1.0
    least = math.ceil(time_at(1 / STEPS) * 1e3) / 1e3  # shown with three decimals: those must do if asked for
    if least > budget_ms:
        raise PlanningError(
            f"--latency-budget {budget_ms:g} ms can't be met: on {maker.tp_size} ranks the attention of {tokens} "
            f"tokens in chunks of {CHUNK_TOKENS} is predicted to take at least {least:.3f} ms; allow that much, or "
            "take a larger --tp."
        )
    return (first_step(lambda density: time_at(density) > budget_ms) - 1) / STEPS
