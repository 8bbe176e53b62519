# SPDX-License-Identifier: Apache-2.0
"""What was promised and what is found: attention time against the cost model, recovered mass against the profile."""

import logging
from collections.abc import Collection
from typing import Any

import numpy as np

from shplb.sglang.fading_mean import FadingMean

logger = logging.getLogger(__name__)

#: Attention may take a quarter more or less time than predicted, and heads recover 0.05 less mass than profiled.
TIME_BAND = (-0.25, 0.25)
MASS_BAND = (-0.05, np.inf)
#: Samples or checks before a mean is judged.
_ENOUGH = 4
#: What has left its band is back inside this part of it, or a mean at its edge would be logged without end.
_BACK = 0.8


class Band:
    """Whether a value is outside (low, high); low < 0 < high."""

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        self.is_left = False

    def judge(self, value: float) -> bool:
        """Whether that changed."""
        part = _BACK if self.is_left else 1.0
        is_left = not self._low * part <= value <= self._high * part
        changed = is_left != self.is_left
        self.is_left = is_left
        return changed


class Drift:
    """Two drifts, each a fading mean, logged once when it leaves its band and once when it is back.

    Attributes:
        time: measured over predicted attention time, less 1; the slowest rank of every layer. NaN before a sample.
        mass: recovered attention mass less what the plan's profile recovered, all layers. NaN where it is not known.
    """

    def __init__(self, judged: Collection[str] = ("time", "mass"), *, logs: bool = True) -> None:
        """judged: which of the two have a promise to keep; logs: one rank does, since all know the same."""
        self._judged, self._logs = judged, logs
        self._times = FadingMean()
        self._bands = {"time": Band(*TIME_BAND), "mass": Band(*MASS_BAND)}
        self.time = self.mass = float("nan")

    def add_times(self, measured_ms: float, predicted_ms: float) -> None:
        """Of one sampled step."""
        self._times.add(np.array([measured_ms, predicted_ms]))
        measured, predicted = self._times.value.tolist()
        self.time = measured / predicted - 1.0 if predicted > 0 else float("nan")
        told = f"attention takes {1 + self.time:.2f} times as long as predicted (fading mean of sampled steps)"
        self._judge("time", self.time, self._times.count, told, "`shplb calibrate` measures the rates of this GPU")

    def set_mass(self, mass: float, checks: int) -> None:
        """The mean over layers of what shadow checks have found so far."""
        self.mass = mass
        more = "less" if mass < 0 else "more"
        told = f"heads recover {abs(mass):.3f} {more} attention mass than in the plan's profile"
        self._judge("mass", mass, checks, told, "profile again with texts like those that are served")

    def _judge(self, name: str, value: float, count: int, told: str, remedy: str) -> None:
        if name not in self._judged or count < _ENOUGH or not np.isfinite(value):
            return
        band = self._bands[name]
        if not band.judge(value) or not self._logs:
            return
        if band.is_left:
            logger.warning("S-HPLB: %s; %s.", told, remedy)
        else:
            logger.info("S-HPLB: %s, which is within its band again.", told)

    def is_left(self, name: str) -> bool:
        return self._bands[name].is_left

    def report(self) -> dict[str, Any]:
        drifts = {"attention_time_drift": self.time, "mass_drift": self.mass}
        return {
            **{name: value if np.isfinite(value) else None for name, value in drifts.items()},
            "drift_out_of_band": [name for name, band in self._bands.items() if band.is_left],
        }
