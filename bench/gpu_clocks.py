# SPDX-License-Identifier: Apache-2.0
"""Clocks and power of the GPUs while something is measured: GPUs that wait draw less, and run faster afterwards."""

import os
import threading
from types import TracebackType
from typing import Any

import numpy as np

EVERY_S = 0.02


class GpuClocks:
    """Use as a context manager around what is measured; samples through NVML in a thread of its own."""

    def __init__(self, count: int, *, nvml: Any = None) -> None:
        """count: the first so many visible GPUs, 0 for none; nvml: a module like ``pynvml``, which is the default."""
        self._samples: list[list[tuple[int, int]]] = []  # (MHz, mW) per GPU
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._handles: list[Any] = []
        if count == 0:
            return
        if nvml is None:
            import pynvml as nvml
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = [_handle(nvml, name) for name in _visible(nvml.nvmlDeviceGetCount())[:count]]

    def __enter__(self) -> "GpuClocks":
        if self._handles:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._handles:
            self._thread.join()

    def facts(self) -> dict[str, list[int]]:
        """Means over the time, one per GPU: ``sm_mhz`` and ``watts``; {} where nothing was sampled."""
        if not self._samples:
            return {}
        clocks, power = np.array(self._samples).mean(axis=0).T
        return {"sm_mhz": np.rint(clocks).astype(int).tolist(), "watts": np.rint(power / 1000).astype(int).tolist()}

    def _sample(self) -> None:
        nvml = self._nvml
        while not self._over.wait(EVERY_S):
            self._samples.append(
                [
                    (nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM), nvml.nvmlDeviceGetPowerUsage(handle))
                    for handle in self._handles
                ]
            )


def _visible(count: int) -> list[str]:
    """Indices or UUIDs of what CUDA may use, in its order."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(index) for index in range(count)] if given is None else [name for name in given.split(",") if name]


def _handle(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
