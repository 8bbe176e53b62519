# SPDX-License-Identifier: Apache-2.0
"""What prefill needs of SGLang's ForwardBatch, and batches of a part of the requests."""

import copy
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class DensePart:
    """The requests of a step that the base backend runs."""

    batch: Any
    rows: torch.Tensor  # int32, their rows of q


@dataclass
class Route:
    """Who runs a planned step: we do, but for the requests of ``dense``."""

    dense: DensePart | None = None


def is_prefill(batch: Any) -> bool:
    """True for a prefill batch of real requests; the dummy batches of graph capture have no request ids."""
    return (
        batch.forward_mode.is_extend_without_speculative()
        and bool(batch.rids)
        and batch.extend_seq_lens_cpu is not None
    )


def sub_batch(batch: Any, chosen: list[int]) -> Any:
    """An extend batch of the chosen requests alone, as far as attention backends read it."""
    part = copy.copy(batch)
    device = batch.seq_lens.device
    indices = torch.tensor(chosen, dtype=torch.int64)
    on_device = indices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else indices
    part.batch_size = len(chosen)
    for name in ("req_pool_indices", "seq_lens", "extend_seq_lens", "extend_prefix_lens"):
        setattr(part, name, getattr(batch, name)[on_device])
    part.seq_lens_cpu = batch.seq_lens_cpu[indices]
    part.seq_lens_sum = int(part.seq_lens_cpu.sum())
    part.extend_prefix_lens_cpu = [batch.extend_prefix_lens_cpu[index] for index in chosen]
    part.extend_seq_lens_cpu = [batch.extend_seq_lens_cpu[index] for index in chosen]
    part.extend_num_tokens = sum(part.extend_seq_lens_cpu)
    part.rids = [batch.rids[index] for index in chosen]
    # SGLang leaves the whole batch's output here; fa3 would write into it.
    part._attn_output = None
    return part
