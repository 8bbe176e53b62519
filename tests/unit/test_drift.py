# SPDX-License-Identifier: Apache-2.0
"""Drift is a fading mean, and is logged when it leaves its band and when it is back, once each."""

import logging

import numpy as np
import pytest

from shplb.sglang.drift import Band, Drift
from shplb.sglang.environment import Environment
from shplb.sglang.metrics import StepCounters
from shplb.sglang.refusal import StartRefusedError


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_value_at_the_edge_changes_sides_once() -> None:
    band = Band(-0.25, 0.25)
    values = [0.24, 0.26, 0.24, 0.26, 0.21, 0.19, 0.24, -0.24, -0.26, -0.21, -0.1]
    assert [band.judge(value) for value in values] == [
        False, True, False, False, False, True, False, False, True, False, True,
    ]  # fmt: skip


def test_time_drift_is_logged_once_out_and_once_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    drift = Drift()
    for _ in range(3):
        drift.add_times(20.0, 10.0)
    assert drift.report() == {"attention_time_drift": 1.0, "mass_drift": None, "drift_out_of_band": []}
    for _ in range(20):
        drift.add_times(20.0, 10.0)
    assert drift.report()["drift_out_of_band"] == ["time"]
    for _ in range(60):
        drift.add_times(10.0, 10.0)
    assert drift.report()["drift_out_of_band"] == []
    assert 0 < drift.time < 0.05
    out, back = logged(caplog)
    assert out == (
        "WARNING",
        "S-HPLB: attention takes 2.00 times as long as predicted (fading mean of sampled steps); `shplb calibrate` "
        "measures the rates of this GPU.",
    )
    assert back[0] == "INFO"
    assert back[1].endswith(
        "times as long as predicted (fading mean of sampled steps), which is within its band again."
    )


def test_long_steps_count_for_more() -> None:
    drift = Drift()
    for _ in range(50):
        drift.add_times(1.0, 0.1)
        drift.add_times(100.0, 100.0)
    assert 0.0 < drift.time < 0.02


def shadow_sums(recovered: float, expected: float) -> np.ndarray:
    """Of 2 layers and 10 heads: what ``ShadowMeans.add`` takes."""
    return np.tile([10 * recovered, 0.1, 1.0, 10 * expected, 10.0], (2, 1))


def test_mass_drift_follows_shadow_checks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    counters = StepCounters()
    counters.start(2)
    for recovered, checks in ((0.95, 10), (0.70, 20), (0.95, 60), (0.99, 60)):
        for _ in range(checks):
            counters.add_shadow(shadow_sums(recovered, 0.90))
    assert counters.report()["mass_drift"] == pytest.approx(0.09, abs=0.01)  # more than promised is no alarm
    (level, out), (_, back) = logged(caplog)
    assert level == "WARNING"
    assert "less attention mass than in the plan's profile; profile again with texts like those that are served." in out
    assert back.endswith("which is within its band again.")


def test_without_a_promise_there_is_no_mass_drift(caplog: pytest.LogCaptureFixture) -> None:
    counters = StepCounters()
    counters.start(1)
    for _ in range(10):
        counters.add_shadow(shadow_sums(0.2, np.nan))
    assert counters.report()["mass_drift"] is None
    assert not logged(caplog)


def test_one_rank_logs_and_only_what_was_promised(caplog: pytest.LogCaptureFixture) -> None:
    for options in ({"rank": 1}, {"judged": ("mass",)}):
        counters = StepCounters()
        counters.start(2, **options)
        for _ in range(10):
            counters.add_measured(np.ones((2, 2)), np.full((2, 2), 9.0), np.full((2, 2), 1_000_000))
        assert counters.report()["attention_time_drift"] == pytest.approx(8.0)
    assert not logged(caplog)


def test_promises_of_experiments() -> None:
    assert Environment().promises == ("time", "mass")
    assert Environment(path="sparse").promises == ("mass",)
    assert Environment(policy="quest").promises == ("time",)
    assert Environment(policy="shplb,tail=64").promises == ("time", "mass")


def test_feedback_needs_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHPLB_FEEDBACK", "on")
    with pytest.raises(StartRefusedError, match="SHPLB_FEEDBACK is on, but nothing is timed; set SHPLB_SAMPLE_EVERY"):
        Environment.read()
    monkeypatch.setenv("SHPLB_SAMPLE_EVERY", "64")
    assert Environment.read().feedback == "on"
    monkeypatch.setenv("SHPLB_FEEDBACK", "1")
    with pytest.raises(StartRefusedError, match="SHPLB_FEEDBACK is 1, expected off or on"):
        Environment.read()
