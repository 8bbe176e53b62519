# SPDX-License-Identifier: Apache-2.0
"""Ranks that plan differently are stopped; sampled times become bubbles."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shplb.rank_speeds import RankSpeeds
from shplb.sglang import step_monitor
from shplb.sglang.environment import Environment
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.refusal import StartRefusedError
from shplb.sglang.step_monitor import CHECK_EVERY, StepMonitor

LAYERS = 2


def plan_of(load: Any) -> Any:
    return SimpleNamespace(rank_makespan_ns=np.full((LAYERS, 2), load), sparse=np.ones(1, dtype=np.uint8))


class Ranks:
    """Two monitors whose messages meet: the first waits in effect for what the second will say."""

    def __init__(self, loads: tuple[int, int], every: int = 0) -> None:
        self.sent: list[list[Any]] = [[], []]
        for rank in (1, 0):

            def gather(value: Any, rank: int = rank) -> list[Any]:
                self.sent[rank].append(value)
                other = self.sent[1 - rank]
                own = len(self.sent[rank]) - 1
                both = [value, other[own] if own < len(other) else value]
                return both if rank == 0 else both[::-1]

            monitor = StepMonitor(LAYERS, gather, every)
            for _ in range(CHECK_EVERY):
                monitor.begin_step([0], [100], plan_of(loads[rank]))


def test_equal_plans_pass_and_are_compared() -> None:
    ranks = Ranks((5, 5))
    assert [len(sent) for sent in ranks.sent] == [1, 1]


def test_different_plans_are_stopped() -> None:
    with pytest.raises(RuntimeError, match="ranks planned different steps"):
        Ranks((5, 6))


class Event:
    """A GPU event that happens when it is recorded, on a clock of our own."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        self.at = Event.now

    def synchronize(self) -> None:
        assert self.at >= 0

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


def test_sampled_times_become_a_bubble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_monitor.torch.cuda, "Event", Event)
    STEP_COUNTERS.start(2)
    # The other rank takes twice as long for attention, and half as long for selection.
    monitor = StepMonitor(
        LAYERS, lambda value: [value, (value[0], None if value[1] is None else value[1] * [[0.5], [2.0]])], 2
    )
    sampled = []
    for _ in range(4):
        monitor.begin_step([0], [100], plan_of(6_000_000))
        sampled.append(monitor.sampling)
        for _ in range(LAYERS if monitor.sampling else 0):
            for span in (0.0, 2.0, 3.0):  # selection takes 2 ms, attention 3 ms
                Event.now += span
                monitor.mark()
    assert sampled == [False, True, False, True]
    report = STEP_COUNTERS.report()
    assert report["sampled_steps"] == 1
    assert report["selection_ms_per_step"] == [4.0, 2.0]
    assert report["attention_ms_per_step"] == [6.0, 12.0]
    assert report["measured_bubble"] == pytest.approx(0.25)
    assert report["predicted_over_measured"] == pytest.approx(1.0)


def sampled(monitor: StepMonitor, load: int) -> np.ndarray | None:
    """One step whose selection takes 2 ms a layer, and attention 3 ms; what it says of speeds."""
    speeds = monitor.begin_step([0], [100], plan_of(load))
    for span in [0.0, 2.0, 3.0] * LAYERS:
        Event.now += span
        monitor.mark()
    return speeds


def test_feedback_finds_the_slower_rank_and_predictions_do_not_feed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_monitor.torch.cuda, "Event", Event)
    STEP_COUNTERS.start(2)
    # The other rank takes a quarter longer for the same load, and 3 ms were predicted.
    other = lambda value: [value, (value[0], None if value[1] is None else value[1] * 1.25)]  # noqa: E731
    monitor = StepMonitor(LAYERS, other, 1, RankSpeeds(2))
    found = [sampled(monitor, 3_000_000) for _ in range(2)]
    assert found[0] is None
    assert found[1] is not None
    once = RankSpeeds(2)
    once.update(np.array([[3.0, 3.75]] * LAYERS), np.full((LAYERS, 2), 3_000_000))
    assert found[1].tolist() == once.values.tolist()
    assert found[1][0] > 1024 > found[1][1]
    assert STEP_COUNTERS.report()["rank_speeds"] == (found[1] / 1024).tolist()
    # A planner that believes these speeds predicts longer times for the slower rank: no reason to slow it down again.
    for _ in range(300):
        at = monitor._speeds.values
        sampled(monitor, 3_000_000 * 1024 // at)
    assert (monitor._speeds.values[1] / monitor._speeds.values[0]) == pytest.approx(0.8, abs=0.003)


@pytest.mark.parametrize("bad", [None, np.nan, 0.0])
def test_a_sample_without_one_rank_changes_nothing(monkeypatch: pytest.MonkeyPatch, bad: float | None) -> None:
    monkeypatch.setattr(step_monitor.torch.cuda, "Event", Event)
    STEP_COUNTERS.start(2)

    def gather(value: Any) -> list[Any]:
        checksum, times = value
        return [value, (checksum, None if bad is None or times is None else times * bad)]

    monitor = StepMonitor(LAYERS, gather, 1, RankSpeeds(2))
    assert [sampled(monitor, 3_000_000) for _ in range(5)] == [None] * 5
    report = STEP_COUNTERS.report()
    assert (report["sampled_steps"], report["attention_time_drift"], report["rank_speeds"]) == (0, None, None)


def test_dense_steps_are_not_timed() -> None:
    monitor = StepMonitor(LAYERS, lambda value: [value], 1)
    monitor.begin_step([0, 5], [10, 1], None)
    assert not monitor.sampling
    monitor.begin_step([0, 5], [100, 1], plan_of(5))
    assert monitor.sampling


@pytest.mark.parametrize(
    ("name", "value"), [("SHPLB_PATH", "fast"), ("SHPLB_SAMPLE_EVERY", "-1"), ("SHPLB_KERNEL", "fa4")]
)
def test_a_wrong_switch_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert Environment.read() == Environment()
    monkeypatch.setenv(name, value)
    with pytest.raises(StartRefusedError, match=f"{name} is {value}, expected "):
        Environment.read()
