# SPDX-License-Identifier: Apache-2.0
"""Once in many steps, ranks compare what they planned and, when sampling is on, how long attention took.

With feedback, every rank then draws the same conclusion about how fast each of them is.

Ranks plan alike from the same lengths, so they come here at the same steps. Nothing waits for the GPU: a sample is
collected when the next one is due.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shplb.planner import NOMINAL_SPEED, StepPlan
from shplb.rank_speeds import RankSpeeds, is_sound
from shplb.sglang.metrics import STEP_COUNTERS

#: Planned steps between two comparisons: one small message between CPUs, about 0.2 ms.
CHECK_EVERY = 256


class StepMonitor:
    """One per rank."""

    def __init__(
        self,
        num_layers: int,
        gather: Callable[[Any], list[Any]],
        sample_every: int,
        speeds: RankSpeeds | None = None,
    ) -> None:
        """gather: a value of every rank, by rank; sample_every: sparse steps from one timed step to the next, or 0;
        speeds: of the ranks, which samples then correct."""
        self._gather, self._sample_every, self._speeds = gather, sample_every, speeds
        self._layers = num_layers
        self._checksum = self._planned = self._sparse = 0
        self._events: list[torch.cuda.Event] = []
        self._predicted: tuple[np.ndarray, np.ndarray | int] | None = None  # and the speeds it was predicted at
        self.sampling = False

    def begin_step(self, prefix: list[int], new: list[int], plan: StepPlan | None) -> np.ndarray | None:
        """Count a planned step; plan: None where it is dense.

        Returns:
            int64 ``[num_ranks]``, speeds for the planner from the next step on, where they have changed.

        Raises:
            RuntimeError: ranks planned different steps.
        """
        self._planned += 1
        self._checksum = zlib.crc32(np.array([prefix, new], dtype=np.int64).tobytes(), self._checksum)
        if plan is not None:
            self._checksum = zlib.crc32(plan.rank_makespan_ns.tobytes() + plan.sparse.tobytes(), self._checksum)
        self.sampling = due = False
        changed = None
        planned_at: np.ndarray | int = NOMINAL_SPEED
        if plan is not None and self._sample_every:
            self._sparse += 1
            due = self._sparse % self._sample_every == 0
        if due and self._speeds is not None:
            planned_at = self._speeds.values  # before the exchange changes them
        if due or self._planned % CHECK_EVERY == 0:
            changed = self._exchange()
        if due and plan is not None:
            self.sampling, self._predicted, self._events = True, (plan.rank_makespan_ns, planned_at), []
        return changed

    def mark(self) -> None:
        """Three times per layer of a sampled step: before selection, before attention, after it."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append(event)

    def _exchange(self) -> np.ndarray | None:
        mine = self._collect()
        answers = self._gather((self._checksum, mine))
        if len({checksum for checksum, _ in answers}) > 1:
            raise RuntimeError("S-HPLB: ranks planned different steps; this is a bug, please report it with the log.")
        times = [times for _, times in answers]
        if any(own is None for own in times):
            return None
        assert self._predicted is not None
        (predicted, planned_at), self._predicted = self._predicted, None
        selection, attention = np.stack(times, axis=-1)
        if not is_sound(attention, predicted):
            return None
        STEP_COUNTERS.add_measured(selection, attention, predicted)
        if self._speeds is None or not self._speeds.update(attention, predicted * planned_at // NOMINAL_SPEED):
            return None
        values = self._speeds.values
        self._checksum = zlib.crc32(values.tobytes(), self._checksum)
        STEP_COUNTERS.set_rank_speeds((values / NOMINAL_SPEED).tolist())
        return values

    def _collect(self) -> np.ndarray | None:
        """float64 [2, num_layers], ms of selection and attention in the last timed step; None without one."""
        events, self._events = self._events, []
        if len(events) != 3 * self._layers or self._predicted is None:
            return None
        events[-1].synchronize()  # of a step long ago
        spans = [[events[at].elapsed_time(events[at + 1]) for at in range(part, len(events), 3)] for part in (0, 1)]
        return np.array(spans)
