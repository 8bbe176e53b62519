# SPDX-License-Identifier: Apache-2.0
"""The counters of one rank at ``/metrics``, beside SGLang's own, for servers with ``--enable-metrics``.

SGLang sets ``PROMETHEUS_MULTIPROC_DIR`` before it starts its schedulers: what a process writes into that folder is
served by the main process. prometheus_client reads the variable when it is imported, hence no import at module level.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from prometheus_client import Gauge

    from shplb.sglang.drift import Drift
    from shplb.sglang.metrics import SampledTimes, StepCounters
    from shplb.sglang.shadow_means import ShadowMeans

_SHADOW = {
    "shplb_shadow_lost_mass": ("lost", "Attention mass on pages that were not kept, shadow checks; fading mean."),
    "shplb_shadow_output_error": ("error", "Error of attention's output over its norm, shadow checks; fading mean."),
    "shplb_shadow_mass_drift": ("drift", "Recovered attention mass less what the plan's profile recovered."),
}
_DRIFT = {
    "time": ("shplb_attention_time_drift", "Measured over predicted attention time, less 1; fading mean."),
    "mass": ("shplb_mass_drift", "Recovered attention mass less the profile's, mean over layers; fading mean."),
}


class StepExporter:
    """Writes the sums of :class:`~shplb.sglang.metrics.StepCounters` after every prefill step.

    ``tp_rank`` is a label as of SGLang's own metrics. Two differ: of the rank loads, which all ranks predict alike, a
    rank writes its own, labelled ``rank``, and balancedness belongs to no rank.
    """

    def __init__(self, rank: int, labels: Mapping[str, object]) -> None:
        """``labels``: of every series, ranks apart."""
        from prometheus_client import Counter

        self.rank = rank
        of_rank = {**labels, "tp_rank": rank}

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, list(of_rank), registry=None).labels(**of_rank)

        self._density = gauge("shplb_density", "Computed over causal attention work, all prefill steps.", of_rank)
        self._load_share = gauge(
            "shplb_rank_load_share", "Predicted load of a rank over the mean rank's.", {**labels, "rank": rank}
        )
        self._balancedness = gauge(
            "shplb_balancedness", "Mean over max of predicted rank loads, layer by layer; 1 is balanced.", labels
        )
        self._sparse_steps = counter("shplb_sparse_steps_total", "Prefill steps with sparse attention.")
        self._dense_steps = counter("shplb_dense_steps_total", "Prefill steps left to the base backend.")
        self._plan_seconds = counter("shplb_plan_seconds_total", "CPU time of planning prefill steps.")
        self._attention_ms = gauge(
            "shplb_attention_ms", "GPU time of a sampled step's sparse attention, all layers; mean.", of_rank
        )
        self._selection_ms = gauge(
            "shplb_selection_ms", "GPU time of a sampled step's page selection, all layers; mean.", of_rank
        )
        self._measured_bubble = gauge(
            "shplb_measured_bubble", "Share of attention time that ranks wait for the slowest, sampled steps.", labels
        )
        self._predicted_over_measured = gauge(
            "shplb_predicted_over_measured", "Attention time by the cost model over that measured.", labels
        )
        self._seen = (0, 0, 0)
        # Made when first needed: an operator without shadow checks has no series of zeros.
        self._shadow: dict[str, list[Gauge]] = {}
        self._drifts: dict[str, tuple[Gauge, Gauge]] = {}
        self._rank_speed: Gauge | None = None
        self._labels = dict(labels)

    def update_sampled(self, sampled: "SampledTimes") -> None:
        report = sampled.report()
        self._attention_ms.set(report["attention_ms_per_step"][self.rank])
        self._selection_ms.set(report["selection_ms_per_step"][self.rank])
        self._measured_bubble.set(report["measured_bubble"])
        self._predicted_over_measured.set(report["predicted_over_measured"])

    def update_shadow(self, shadow: "ShadowMeans") -> None:
        """One series per layer; all ranks know the same sums."""
        for name, (attribute, text) in _SHADOW.items():
            values = getattr(shadow, attribute)
            if not np.all(np.isfinite(values)):
                continue
            if name not in self._shadow:
                self._shadow[name] = [
                    gauge(name, text, {**self._labels, "layer": layer}) for layer in range(len(values))
                ]
            for child, value in zip(self._shadow[name], values.tolist(), strict=True):
                child.set(value)

    def update_drift(self, drift: "Drift") -> None:
        """All ranks know the same."""
        for kind, (name, text) in _DRIFT.items():
            value = getattr(drift, kind)
            if not np.isfinite(value):
                continue
            if kind not in self._drifts:
                left = "1 while a drift is out of its band."
                labels = {**self._labels, "drift": kind}
                self._drifts[kind] = (
                    gauge(name, text, self._labels),
                    gauge("shplb_drift_out_of_band", left, labels),
                )
            of_value, of_band = self._drifts[kind]
            of_value.set(value)
            of_band.set(drift.is_left(kind))

    def update_rank_speeds(self, speeds: list[float]) -> None:
        """This rank's; all know all of them."""
        if self._rank_speed is None:
            text = "Attention work that a rank gets done over what the cost model says, ranks compared; 1 is alike."
            self._rank_speed = gauge("shplb_rank_speed", text, {**self._labels, "tp_rank": self.rank})
        self._rank_speed.set(speeds[self.rank])

    def update(self, counters: "StepCounters") -> None:
        """At most five writes to mapped memory, since it is called in every step."""
        sparse, dense, plan_ns = self._seen
        self._seen = (counters.sparse_steps, counters.dense_steps, counters.plan_ns)
        if counters.plan_ns > plan_ns:
            self._plan_seconds.inc((counters.plan_ns - plan_ns) * 1e-9)
        if counters.causal:
            self._density.set(counters.computed / counters.causal)
        if counters.dense_steps > dense:
            self._dense_steps.inc(counters.dense_steps - dense)
        if counters.sparse_steps == sparse:
            return
        self._sparse_steps.inc(counters.sparse_steps - sparse)
        placed = counters.placed
        loads = placed.ranks.tolist()  # sums of short lists are quicker than numpy's
        if total := sum(loads):
            self._load_share.set(loads[self.rank] * len(loads) / total)
            self._balancedness.set(total / (placed.slowest * len(loads)))


def gauge(name: str, text: str, labels: Mapping[str, object]) -> "Gauge":
    """One series.

    No registry: the folder is what counts, and a registry takes a name once though a process may start several servers.
    What comes back is the child: to look up labels costs more than to set a value.
    """
    from prometheus_client import Gauge

    made = Gauge(name, text, list(labels), registry=None, multiprocess_mode="mostrecent")
    return made.labels(**labels) if labels else made


def make_exporter(rank: int, labels: Mapping[str, object]) -> StepExporter | None:
    """None without prometheus_client, which SGLang needs for its own metrics only."""
    try:
        return StepExporter(rank, labels)
    except ImportError:
        return None
