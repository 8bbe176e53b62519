# SPDX-License-Identifier: Apache-2.0
"""What tensor-parallel ranks tell each other: at start, and once in many steps."""

from typing import Any

import torch

from shplb.sglang.refusal import StartRefusedError


def gather(runner: Any, value: Any) -> list[Any]:
    """``value`` of every rank, by rank; every rank must call this at the same point. Small objects only."""
    if runner.tp_size == 1:
        return [value]
    from sglang.srt.distributed import get_tp_group

    values: list[Any] = [None] * runner.tp_size
    torch.distributed.all_gather_object(values, value, group=get_tp_group().cpu_group)
    return values


def check_same_plan(plan_hash: str, runner: Any) -> None:
    """All ranks must have read the same plan, or they would place heads differently; StartRefusedError if not."""
    hashes = gather(runner, plan_hash)
    if len(set(hashes)) > 1:
        raise StartRefusedError(f"ranks read different plans ({hashes}); give every node the same --shplb-plan file.")
