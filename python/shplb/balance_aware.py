# SPDX-License-Identifier: Apache-2.0
"""Budgets and placement solved together: budget that lands on an otherwise idle rank is free."""

import numpy as np
import numpy.typing as npt

from shplb import _core
from shplb._core import BalanceAwareBudgets
from shplb.budget import Scope

__all__ = ["BalanceAwareBudgets", "allocate_balance_aware"]


def allocate_balance_aware(
    curves: npt.NDArray[np.float64],
    densities: npt.NDArray[np.float64],
    total_density: float,
    num_ranks: int,
    *,
    num_groups: int,
    min_density: float = 0.0,
    scope: Scope = "model",
    zero: npt.NDArray[np.float64] | None = None,
    inert: npt.NDArray[np.bool_] | None = None,
    group_to_rank: npt.NDArray[np.int32] | None = None,
    slowest_load: npt.NDArray[np.float64] | None = None,
) -> BalanceAwareBudgets:
    """Least output error when the slowest rank of every layer is what costs, not the sum of densities.

    Ranks meet after every layer. The load of a rank is the summed density of its heads; what is limited is the sum
    over layers of the largest load. A head on another rank than the slowest may have more at no cost. For a given
    placement the answer is the exact optimum over the convex hulls of the curves: under a ceiling each rank fills
    its own heads from the steepest hull segment on, and the ceilings share the total by equal marginal gain (Everett
    1963, Fox 1966; this use of it is our own). Without one, placement and ceilings take turns, starting from budgets
    and placement solved apart, until no turn helps. The error is never above that of the two solved apart, but for
    rounding to the grid of 2^-40. Every decision is made with integers.

    Args:
        curves: float64 ``[num_layers, num_heads, num_points]``, output error as for ``allocate_budgets``.
        densities: float64 ``[num_points]``, as for ``allocate_budgets``.
        total_density: mean density, in (0, 1], at which budgets and placement solved apart define the total. Not
            used where ``slowest_load`` is given, but at least ``min_density``.
        num_ranks: divides ``num_groups``; every rank gets equal counts of groups.
        num_groups: KV groups per layer; the heads of a group follow each other and stay together.
        min_density, zero, inert: as for ``allocate_budgets``. Inert heads are no load.
        scope: ``model`` shares the sum of the layers' ceilings, ``layer`` keeps the ceiling of every layer.
        group_to_rank: int32 ``[num_layers, num_groups]``, a placement to keep; None finds one.
        slowest_load: float64 ``[num_layers]``, summed density of each layer's slowest rank, to spend instead of what
            the two solved apart come to; raised to what the floors need.

    Returns:
        ``.density`` float64 ``[num_layers, num_heads]``, ``.group_to_rank`` int32 ``[num_layers, num_groups]``,
        ``.slowest_load`` float64 ``[num_layers]`` (all read-only), ``.mean_density``, ``.total_error`` (on the hulls).

    Raises:
        InvalidArgument: names the argument, what was given and what was expected.
    """
    return _core.allocate_balance_aware(
        curves,
        densities,
        total_density,
        num_ranks,
        num_groups=num_groups,
        min_density=min_density,
        scope=scope,
        zero=zero,
        inert=inert,
        group_to_rank=group_to_rank,
        slowest_load=slowest_load,
    )
