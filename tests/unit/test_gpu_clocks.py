# SPDX-License-Identifier: Apache-2.0
"""Clocks and power beside a measurement, with NVML replaced."""

import time
from typing import Any

import pytest
from gpu_clocks import EVERY_S, GpuClocks


class Nvml:
    """Eight GPUs of which number i runs at 1000 + i MHz and draws 100 + i W."""

    NVML_CLOCK_SM = 1

    def __init__(self) -> None:
        self.calls = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 8

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return int(name.removeprefix("GPU-"))

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        assert kind == self.NVML_CLOCK_SM
        self.calls += 1
        return 1000 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 1000 * (100 + handle)


@pytest.mark.parametrize(("visible", "expected"), [(None, [0, 1]), ("3,2,1", [3, 2]), ("GPU-5,GPU-4", [5, 4])])
def test_means_of_the_visible_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[int]) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml: Any = Nvml()
    with GpuClocks(2, nvml=nvml) as clocks:
        time.sleep(5 * EVERY_S)
    assert clocks.facts() == {"sm_mhz": [1000 + i for i in expected], "watts": [100 + i for i in expected]}
    calls = nvml.calls
    time.sleep(3 * EVERY_S)
    assert nvml.calls == calls, "nothing is sampled afterwards"


def test_a_machine_without_gpus_and_a_moment_too_short() -> None:
    with GpuClocks(0) as clocks:
        pass
    assert clocks.facts() == {}
    with GpuClocks(1, nvml=Nvml()) as clocks:
        pass
    assert clocks.facts() == {}
