# SPDX-License-Identifier: Apache-2.0
"""Counters of one rank, shown in ``/server_info`` and, with ``--enable-metrics``, at ``/metrics``.

A bench reads them to be sure that the sparse path ran.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from shplb.sglang.drift import Drift
from shplb.sglang.shadow_means import ShadowMeans

if TYPE_CHECKING:
    from shplb.sglang.prometheus import StepExporter


class LayerLoads:
    """Rank loads summed over layers and steps, and what waiting for each other after every layer makes of them.

    Attributes:
        ranks: int64 [tp_size].
        slowest: sum over layers of the most loaded rank.
    """

    def __init__(self, tp_size: int) -> None:
        self.ranks = np.zeros(tp_size, dtype=np.int64)
        self.slowest = 0

    def add(self, loads: np.ndarray) -> None:
        """loads: int64 [num_layers, tp_size]."""
        self.ranks += loads.sum(axis=0)
        self.slowest += int(loads.max(axis=1).sum())

    @property
    def imbalance(self) -> float:
        """max/mean over ranks, layer by layer; 1.0 before the first step."""
        total = int(self.ranks.sum())
        return self.slowest * len(self.ranks) / total if total else 1.0


class SampledTimes:
    """GPU time of sampled sparse steps, ms, summed over layers and steps."""

    def __init__(self, tp_size: int) -> None:
        self.steps = 0
        self.selection = np.zeros(tp_size)
        self.attention = np.zeros(tp_size)
        self.slowest = 0.0  # of attention: the slowest rank of every layer
        self.predicted = 0.0  # the same, by the cost model

    def add(self, selection_ms: np.ndarray, attention_ms: np.ndarray, predicted_ns: np.ndarray) -> tuple[float, float]:
        """float64 [num_layers, tp_size] twice, and int64 of that shape.

        Returns (measured, predicted) attention of this step, ms, the slowest rank of every layer.
        """
        self.steps += 1
        self.selection += selection_ms.sum(axis=0)
        self.attention += attention_ms.sum(axis=0)
        slowest, predicted = float(attention_ms.max(axis=1).sum()), float(predicted_ns.max(axis=1).sum()) / 1e6
        self.slowest += slowest
        self.predicted += predicted
        return slowest, predicted

    def report(self) -> dict[str, Any]:
        if not self.steps:
            return {"sampled_steps": 0}
        return {
            "sampled_steps": self.steps,
            "selection_ms_per_step": (self.selection / self.steps).tolist(),
            "attention_ms_per_step": (self.attention / self.steps).tolist(),
            "measured_bubble": 1.0 - float(self.attention.mean()) / self.slowest,
            "predicted_over_measured": self.predicted / self.slowest,
        }


class StepCounters:
    """Sums over prefill steps; the work unit is one (query row, key page) pair per query head."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.sparse_steps = 0
        self.dense_steps = 0
        self.computed = 0
        self.causal = 0
        self.plans = 0
        self.plan_ns = 0
        self.placed = LayerLoads(1)
        self.contiguous = LayerLoads(1)
        self.sampled = SampledTimes(1)
        self.rank_speeds: list[float] = []  # 1.0: as predicted; of feedback
        self.shadow = ShadowMeans()
        self.drift = Drift()
        self.exporter: StepExporter | None = None

    def start(
        self,
        tp_size: int,
        *,
        export: bool = False,
        rank: int = 0,
        labels: Mapping[str, object] | None = None,
        judged: Collection[str] = ("time", "mass"),
        **facts: Any,
    ) -> None:
        """Reset for a server of ``tp_size`` ranks; ``facts`` (builtins) are shown as they are.

        ``export``: to Prometheus too after every step, as ``rank`` and with ``labels``; ``judged``: as of ``Drift``.
        """
        self.__init__()  # type: ignore[misc]
        self.facts = facts
        self.placed, self.contiguous = LayerLoads(tp_size), LayerLoads(tp_size)
        self.sampled = SampledTimes(tp_size)
        self.drift = Drift(judged, logs=rank == 0)
        if export:
            from shplb.sglang.prometheus import make_exporter

            self.exporter = make_exporter(rank, labels or {})

    def add_step(
        self,
        *,
        dense: bool,
        computed: int,
        causal: int,
        placed: np.ndarray,
        contiguous: np.ndarray,
    ) -> None:
        """Count one prefill step; rank loads are int64 [num_layers, tp_size], as placed and as stock would shard."""
        self.dense_steps += dense
        self.sparse_steps += not dense
        self.computed += computed
        self.causal += causal
        self.placed.add(placed)
        self.contiguous.add(contiguous)
        if self.exporter is not None:
            self.exporter.update(self)

    def add_plan_ns(self, plan_ns: int) -> None:
        """CPU time that planning one step took before the GPU could be given its work."""
        self.plans += 1
        self.plan_ns += plan_ns

    def add_measured(self, selection_ms: np.ndarray, attention_ms: np.ndarray, predicted_ns: np.ndarray) -> None:
        """Time on the GPU of a sampled step, per layer and rank; predicted: of attention alone."""
        self.drift.add_times(*self.sampled.add(selection_ms, attention_ms, predicted_ns))
        if self.exporter is not None:
            self.exporter.update_sampled(self.sampled)
            self.exporter.update_drift(self.drift)

    def set_rank_speeds(self, speeds: list[float]) -> None:
        """What feedback has found, [tp_size]."""
        self.rank_speeds = speeds
        if self.exporter is not None:
            self.exporter.update_rank_speeds(speeds)

    def add_shadow(self, sums: np.ndarray) -> None:
        """One shadow check, as ``ShadowMeans.add`` takes it."""
        self.shadow.add(sums)
        self.drift.set_mass(float(self.shadow.drift.mean()), self.shadow.checks)
        if self.exporter is not None:
            self.exporter.update_shadow(self.shadow)
            self.exporter.update_drift(self.drift)

    def add_unplanned(self, computed: int) -> None:
        """Work above (or below) what :meth:`add_step` was told, of lists that were not as long as planned."""
        self.computed += computed

    def report(self) -> dict[str, Any]:
        return {
            **self.facts,
            **self.sampled.report(),
            **self.shadow.report(),
            **self.drift.report(),
            "rank_speeds": self.rank_speeds or None,
            "sparse_steps": self.sparse_steps,
            "dense_steps": self.dense_steps,
            "computed_row_pages": self.computed,
            "causal_row_pages": self.causal,
            "density": self.computed / self.causal if self.causal else None,
            "plan_ms_per_step": self.plan_ns / self.plans / 1e6 if self.plans else None,
            "rank_loads": self.placed.ranks.tolist(),
            "imbalance": self.placed.imbalance,
            "contiguous_rank_loads": self.contiguous.ranks.tolist(),
            "contiguous_imbalance": self.contiguous.imbalance,
        }


#: One server per process, as everywhere in SGLang.
STEP_COUNTERS = StepCounters()
