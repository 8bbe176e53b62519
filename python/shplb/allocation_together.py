# SPDX-License-Identifier: Apache-2.0
"""Budgets and placement as one decision: at every length the slowest rank of each layer is what costs."""

import math

import numpy as np

from shplb.allocation import (
    Allocation,
    LengthProblem,
    allocate_apart,
    group_loads,
    length_problems,
    slot_order,
    stack_lengths,
)
from shplb.balance_aware import BalanceAwareBudgets, allocate_balance_aware
from shplb.budget import Scope
from shplb.plan import rank_sums
from shplb.profile import HeadProfile
from shplb.sparsity import SparsityRule

#: The total is cut in steps of 1/4096, by half at most.
_STEPS = 4096
_MOST_CUT = 2048
_HALVINGS = 6


def allocate_together(
    profile: HeadProfile, rule: SparsityRule, density: float, tp_size: int, *, scope: Scope
) -> Allocation:
    """Least output error at the slowest-rank work that budgets (``min_error``) and placement solved apart have.

    The placement is one for all lengths. It is found at the longest; at the others budgets are solved for it, each
    length with its own total. If that fails, the placement of the two solved apart is tried.

    Returns:
        An allocation that is at least as good as the two solved apart in everything: output error at every profiled
        length, and kept pages of the slowest ranks in a prefill at the longest. Where none is found, the two apart.
    """
    apart = allocate_apart(profile, rule, density, tp_size, objective="min_error", scope=scope)
    if tp_size == 1:
        return apart  # no rank waits
    search = _Together(profile, rule, apart, length_problems(profile, density, "min_error"), tp_size, scope)
    for ranks in search.placements():
        if (made := search.allocate(ranks)) is not None:
            return made
    return apart


class _Together:
    def __init__(
        self,
        profile: HeadProfile,
        rule: SparsityRule,
        apart: Allocation,
        problems: list[LengthProblem],
        tp_size: int,
        scope: Scope,
    ) -> None:
        self._profile, self._rule, self._apart, self._problems = profile, rule, apart, problems
        self._tp_size = tp_size
        self._scope: Scope = scope
        self._ranks = _ranks_of(apart.physical_to_logical, tp_size)
        self._limits = [self._slowest_density(apart.budgets[:, :, index]) for index in range(len(problems))]

    def placements(self) -> list[np.ndarray]:
        """int32 [num_layers, num_kv_heads] each: found together with budgets at the longest length, and apart."""
        return [self._solve(-1, None, 1.0).group_to_rank, self._ranks]

    def allocate(self, ranks: np.ndarray) -> Allocation | None:
        """Budgets for a placement; None where they are worse than the two solved apart.

        Pages are whole, and apart the slowest rank may be another one at every length, while here all ranks are level:
        so equal totals can cost more pages. Then the totals are cut, all lengths by one share, until they fit, and
        that cut is halved back a few times.
        """
        most = _slowest_pages(self._apart, self._tp_size)

        def excess(made: Allocation) -> int:
            return _slowest_pages(made, self._tp_size) - most

        best, low, cut = self._cut(ranks, 0), 0, 0
        while excess(best) > 0 and cut < _MOST_CUT:
            low, cut = cut, min(cut + math.ceil(2 * _STEPS * excess(best) / most), _MOST_CUT)
            best = self._cut(ranks, cut)
        for _ in range(_HALVINGS):
            middle = (low + cut) // 2
            if excess(best) <= 0 and middle > low and excess(made := self._cut(ranks, middle)) <= 0:
                best, cut = made, middle
            else:
                low = middle
        good = excess(best) <= 0 and bool(np.all(_error(best) <= _error(self._apart)))
        return best if good else None

    def _cut(self, ranks: np.ndarray, cut: int) -> Allocation:
        """Budgets for a placement with the totals less ``cut`` of ``_STEPS``."""
        solved = [self._solve(index, ranks, 1.0 - cut / _STEPS) for index in range(len(self._problems))]
        budgets = stack_lengths([one.density for one in solved], self._profile)
        loads = group_loads(budgets, self._profile, self._rule)
        return Allocation(budgets, np.array([one.total_error for one in solved]), slot_order(ranks), loads)

    def _solve(self, index: int, ranks: np.ndarray | None, share: float) -> BalanceAwareBudgets:
        problem = self._problems[index]
        return allocate_balance_aware(
            problem.curves,
            problem.densities,
            problem.total_density,
            self._tp_size,
            num_groups=self._profile.model.num_kv_heads,
            min_density=problem.min_density,
            scope=self._scope,
            inert=problem.inert,
            group_to_rank=ranks,
            slowest_load=share * self._limits[index],
        )

    def _slowest_density(self, densities: np.ndarray) -> np.ndarray:
        """float64 [num_layers]: summed densities of the slowest rank as placed apart, inert heads left out."""
        real = np.where(self._profile.inert, 0.0, densities)
        model = self._profile.model
        groups = real.reshape(model.num_layers, model.num_kv_heads, model.group_size).sum(axis=2)
        return np.asarray(rank_sums(groups, self._apart.physical_to_logical, self._tp_size).max(axis=1))


def _error(made: Allocation) -> np.ndarray:
    assert made.error is not None  # the objective is min_error
    return made.error


def _ranks_of(physical_to_logical: np.ndarray, tp_size: int) -> np.ndarray:
    """int32 [num_layers, num_kv_heads]: the rank of every KV group."""
    each = physical_to_logical.shape[1] // tp_size
    return np.asarray(np.argsort(physical_to_logical, axis=1) // each, dtype=np.int32)


def _slowest_pages(made: Allocation, tp_size: int) -> int:
    """Kept pages of the slowest rank, summed over layers."""
    return int(rank_sums(made.loads, made.physical_to_logical, tp_size).max(axis=1).sum())
