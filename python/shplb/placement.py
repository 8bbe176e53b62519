# SPDX-License-Identifier: Apache-2.0
"""Which tensor-parallel rank serves which KV group, layer by layer."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from shplb import _core
from shplb._core import Placement

__all__ = ["Method", "Placement", "place_heads"]

Method = Literal["auto", "exact", "lpt_swap", "lpt", "snake", "contiguous"]


def place_heads(
    loads: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    num_ranks: int,
    *,
    equal_count: bool = True,
    method: Method = "auto",
) -> Placement:
    """Places the units of each layer on ranks such that the most loaded rank has little to do.

    Args:
        loads: int64 (ns) or float64 ``[num_layers, num_units]``, finite and >= 0, C-contiguous.
            Float loads are scaled such that the largest is 2^40 and rounded to integers. Inert
            (padded) units have load 0.
        num_ranks: in [1, 1024].
        equal_count: every rank gets ``num_units / num_ranks`` units, as a KV cache of fixed head
            count needs it; otherwise any number, also none.
        method: ``auto`` is exact up to 8 units, above that longest-first with best swaps;
            ``exact`` is branch and bound at any size; ``lpt_swap``, ``lpt`` (EPLB, db-SP),
            ``snake`` (xDiT) and ``contiguous`` (stock tensor parallelism) are there to compare.

    Returns:
        ``.head_to_rank`` int32 ``[num_layers, num_units]``; ``.rank_loads``
        ``[num_layers, num_ranks]`` and ``.lower_bound`` ``[num_layers]`` in the dtype and unit of
        ``loads``; ``.imbalance`` float64 ``[num_layers]``, largest over mean rank load, 1 where all
        loads are 0. All read-only. Ranks are named in the order of their lowest unit, except for
        ``snake`` and ``contiguous``, where they are named as dealt.

    Raises:
        InvalidArgument: names the argument, what was given and what was expected; also if
            ``num_ranks`` does not divide ``num_units`` under ``equal_count``.
        Infeasible: ``method="exact"`` did not finish within its bounded search.
    """
    return _core.place_heads(loads, num_ranks, equal_count=equal_count, method=method)
