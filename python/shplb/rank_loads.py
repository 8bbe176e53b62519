# SPDX-License-Identifier: Apache-2.0
"""Loads of the ranks under a plan: as stock SGLang shards, as placed, and what no placement can undercut."""

from dataclasses import dataclass

import numpy as np

from shplb.allocation import placed_order
from shplb.placement import place_heads
from shplb.plan import ServingPlan, rank_sums
from shplb.replicas import place_replicas


def imbalance(loads: np.ndarray) -> float:
    """Time lost to waiting: ranks meet after every layer, so sum of layer maxima over sum of layer means."""
    means = loads.mean(axis=1).sum()
    return float(loads.max(axis=1).sum() / means) if means else 1.0


@dataclass(frozen=True)
class RankLoads:
    """Loads [num_layers, tp_size] in the plan's unit, before and after placement, and the lower bound [num_layers] on
    the largest load of a layer under equal counts (``place_heads``, ``place_replicas``).

    ``placed`` is the plan, with replicas divided best; ``whole`` what whole groups alone come to, the same without
    replicas."""

    contiguous: np.ndarray
    placed: np.ndarray
    bound: np.ndarray
    whole: np.ndarray

    @classmethod
    def of(cls, plan: ServingPlan) -> "RankLoads":
        contiguous, placed = plan.rank_loads(plan.loads, contiguous=True), plan.rank_loads(plan.loads)
        if not plan.replicas:
            bound = np.asarray(place_heads(plan.loads, plan.tp_size).lower_bound)
            return cls(contiguous, placed, bound, placed)
        copied = place_replicas(plan.loads, plan.tp_size, plan.replicas, method="greedy")
        whole = rank_sums(plan.loads, placed_order(plan.loads, plan.tp_size), plan.tp_size)
        return cls(contiguous, placed, copied.lower_bound, whole)

    @property
    def rows(self) -> list[tuple[str, np.ndarray]]:
        """Name and loads of every way to place heads that is worth showing, the plan's own last."""
        if self.whole is self.placed:
            return [("contiguous", self.contiguous), ("placed", self.placed)]
        return [("contiguous", self.contiguous), ("placed", self.whole), ("replicas", self.placed)]

    @property
    def bound_imbalance(self) -> float:
        """The imbalance that no placement of whole KV groups in equal counts goes below."""
        means = self.placed.mean(axis=1).sum()
        return float(self.bound.sum() / means) if means else 1.0

    def layer_imbalance(self, loads: np.ndarray) -> np.ndarray:
        """float64 [num_layers], max/mean; 1 where a layer has no load."""
        return np.array([imbalance(row[None]) for row in loads])
