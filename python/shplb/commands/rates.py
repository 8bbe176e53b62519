# SPDX-License-Identifier: Apache-2.0
"""Whose rates a prediction uses."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shplb.device import Device
    from shplb.model import ModelShape


def device_for(model: "ModelShape", rates: Path | None = None) -> "Device":
    """The GPU of the file given, else of the cached rates that fit the model, else an H200."""
    from shplb.device import choose_device
    from shplb.sglang.active_plan import rates_dir

    return choose_device(model, rates, rates_dir())
