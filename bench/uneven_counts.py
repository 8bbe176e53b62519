# SPDX-License-Identifier: Apache-2.0
"""Ranks that hold different numbers of KV groups, for bench_replicas.

No server holds uneven counts here, and neither does the step planner: times are put together from those of single
groups, as it does itself.
"""

from dataclasses import dataclass

import numpy as np

from shplb import place_heads
from shplb.plan import ServingPlan
from shplb.plan_planner import NUM_CTAS, planner_of
from shplb.planner import StepPlanner
from shplb.prediction import chunks_of

#: So many that no CTA has two items, and a makespan is the longest of them.
_ONE_ITEM_EACH = 1024


@dataclass(frozen=True)
class LayerTimes:
    """Predicted attention of one prompt, layer by layer, int64 ns [num_layers] each, over all chunks.

    slowest: of the rank that takes longest in a chunk; total: of all ranks.
    """

    slowest: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, makespans: np.ndarray) -> "LayerTimes":
        """makespans: int64 [num_chunks, num_layers, num_ranks]."""
        return cls(makespans.max(axis=2).sum(axis=0), makespans.sum(axis=(0, 2)))

    def facts(self, num_ranks: int) -> dict[str, float]:
        slowest = float(self.slowest.sum())
        return {
            "imbalance": round(slowest * num_ranks / float(self.total.sum()), 4),
            "attention_ms": round(slowest * 1e-6, 3),
        }


def makespans_of(planner: StepPlanner, tokens: int) -> np.ndarray:
    """int64 [num_chunks, num_layers, num_ranks], ns, of one prompt that runs sparse throughout."""
    chunks = np.stack(chunks_of(tokens), axis=1)[:, :, None]
    return np.stack([planner.predict(prefix, new, "sparse").rank_makespan_ns for prefix, new in chunks])


def uneven_times(plan: ServingPlan, pages: np.ndarray, group_to_rank: np.ndarray, tokens: int) -> LayerTimes:
    """group_to_rank: int [num_layers, num_groups]."""
    groups, ranks = plan.model.num_kv_heads, range(plan.tp_size)
    sums, longest = (
        makespans_of(planner_of(plan, pages, plan.own_order, groups, num_ctas=ctas), tokens)
        for ctas in (1, _ONE_ITEM_EACH)
    )
    held = [np.where(group_to_rank == rank, sums, 0).sum(axis=2) for rank in ranks]
    last = [np.where(group_to_rank == rank, longest, 0).max(axis=2) for rank in ranks]
    return LayerTimes.of(np.stack([np.maximum(-(-sum_ // NUM_CTAS), end) for sum_, end in zip(held, last, strict=True)],
                                  axis=2))  # fmt: skip


def place_unevenly(loads: np.ndarray, num_ranks: int) -> np.ndarray:
    """int [num_layers, num_groups], ranks whose loads are as even as can be; counts differ where that gains 0.1 %.

    Ranks of a layer are interchangeable: they are named such that all ranks hold about as many groups over all layers.
    """
    equal, uneven = (place_heads(loads, num_ranks, equal_count=equal) for equal in (True, False))
    gains = uneven.rank_loads.max(axis=1) < 0.999 * equal.rank_loads.max(axis=1)
    found = np.where(gains[:, None], uneven.head_to_rank, equal.head_to_rank)
    held = np.zeros(num_ranks, dtype=np.int64)
    named = np.empty_like(found)
    for layer, ranks in enumerate(found):
        counts = np.bincount(ranks, minlength=num_ranks)
        name = np.empty(num_ranks, dtype=found.dtype)
        name[np.argsort(-counts, kind="stable")] = np.argsort(held, kind="stable")
        held[name] += counts
        named[layer] = name[ranks]
    return named


def counts_of(group_to_rank: np.ndarray, num_ranks: int) -> np.ndarray:
    """int64 [num_layers, num_ranks], groups that each rank holds."""
    return np.stack([np.bincount(ranks, minlength=num_ranks) for ranks in group_to_rank])
