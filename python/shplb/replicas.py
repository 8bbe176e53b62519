# SPDX-License-Identifier: Apache-2.0
"""Which KV groups two tensor-parallel ranks hold, and how much of each either of them computes."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from shplb import _core
from shplb._core import ReplicaPlacement

__all__ = ["ReplicaMethod", "ReplicaPlacement", "divide_replicas", "place_replicas"]

ReplicaMethod = Literal["auto", "exact", "greedy"]


def place_replicas(
    loads: npt.NDArray[np.int64], num_ranks: int, num_replicas: int, *, method: ReplicaMethod = "auto"
) -> ReplicaPlacement:
    """Places the units of each layer on ranks with ``num_replicas`` extra slots each, which hold second copies.

    What two ranks hold they divide at every step in any proportion, so the largest rank load is that of the best
    division (a linear program, solved exactly in integers). All ranks get as many slots; no unit has more than two, or
    two on one rank.

    Args:
        loads: int64 ``[num_layers, num_units]``, ns or any unit, >= 0, C-contiguous; ``num_ranks`` divides num_units.
        num_ranks: ranks and slots together may be up to 512.
        num_replicas: extra slots per rank, from 0 to ``num_units / num_ranks`` (with which every unit has a copy).
        method: ``greedy`` is EPLB's (DeepSeek): the heaviest units get the copies, then halves and wholes go longest
            first to the least loaded rank with room; ``auto`` starts there, takes the best exchange of two slots, or
            of a copy for another unit's, until none helps, and then searches up to 8 units by branch and bound within
            20,000 nodes; ``exact`` searches until the placement is proven.

    Returns:
        ``.slot_groups`` int32 ``[num_layers, num_ranks, num_units / num_ranks + num_replicas]``, units in each rank's
        slots, ascending; ``.rank_loads`` int64 ``[num_layers, num_ranks]``, best divided; ``.imbalance`` float64
        ``[num_layers]``, largest over mean; ``.lower_bound`` int64 ``[num_layers]`` on the largest rank load. All
        read-only. Ranks are named in the order of their units.

    Raises:
        InvalidArgument: names the argument, what was given and what was expected.
        Infeasible: ``method="exact"`` did not finish within its bounded search.
    """
    return _core.place_replicas(loads, num_ranks, num_replicas, method=method)


def divide_replicas(loads: npt.NDArray[np.int64], slot_groups: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Rank loads, int64 ``[num_layers, num_ranks]``, with the largest of every layer as small as it can be.

    Args:
        loads: int64 ``[num_layers, num_units]``, >= 0.
        slot_groups: int32 ``[num_layers, num_ranks, num_slots]``; units in one slot are whole, those in two, on
            different ranks, are divided.

    Raises:
        InvalidArgument: names the argument, what was given and what was expected.
    """
    return _core.divide_replicas(loads, slot_groups)
