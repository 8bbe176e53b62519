# SPDX-License-Identifier: Apache-2.0
"""Switches for tests, benches and operators that are no server flags: the patch of SGLang stays small."""

import os
from typing import Any, Literal, NamedTuple, cast, get_args

from shplb.planner import Mode
from shplb.sglang.refusal import StartRefusedError

PATH = "SHPLB_PATH"
SAMPLE_EVERY = "SHPLB_SAMPLE_EVERY"
KERNEL = "SHPLB_KERNEL"
KERNELS = ("auto", "sm90", "public")


class Environment(NamedTuple):
    """path: which way every prefill request goes, ``auto`` by prediction; sample_every: sparse steps between two of
    which attention is timed, 0 for never; kernel: of FlashInfer, ``auto`` by GPU."""

    path: Mode = "auto"
    sample_every: int = 0
    kernel: Literal["auto", "sm90", "public"] = "auto"

    @classmethod
    def read(cls) -> "Environment":
        """StartRefusedError in one sentence for a value that is not valid."""
        path, every = os.environ.get(PATH) or "auto", os.environ.get(SAMPLE_EVERY) or "0"
        kernel = os.environ.get(KERNEL) or "auto"
        if path not in get_args(Mode):
            raise StartRefusedError(f"{PATH} is '{path}', expected {', '.join(get_args(Mode))}.")
        if not every.isdecimal():
            raise StartRefusedError(f"{SAMPLE_EVERY} is '{every}', expected a number of steps, or 0 for no sampling.")
        if kernel not in KERNELS:
            raise StartRefusedError(f"{KERNEL} is '{kernel}', expected {', '.join(KERNELS)}.")
        return cls(cast(Mode, path), int(every), cast(Any, kernel))
