# SPDX-License-Identifier: Apache-2.0
"""What prefill needs of SGLang's ForwardBatch, and batches of a part of the requests."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from shplb.sglang.parts import Parts


@dataclass
class DensePart:
    """The parts of a step that the base backend runs; rows: theirs of q, int64 where they are not one stretch."""

    batch: Any
    rows: slice | torch.Tensor


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


def upload(columns: list[list[int]], device: torch.device) -> torch.Tensor:
    """int64 [num_columns, n] on the device, without a wait for it."""
    on_host = torch.tensor(columns, dtype=torch.int64)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host


def sub_batch(batch: Any, parts: Parts) -> Any:
    """An extend batch of these parts alone, as far as attention backends read it."""
    part = copy.copy(batch)
    requests, prefix, new, ends = upload([parts.request, parts.prefix, parts.new, parts.ends], batch.seq_lens.device)
    part.batch_size = len(parts.request)
    part.req_pool_indices = batch.req_pool_indices[requests]
    for name, values in (("seq_lens", ends), ("extend_seq_lens", new), ("extend_prefix_lens", prefix)):
        setattr(part, name, values.to(getattr(batch, name).dtype))
    part.seq_lens_cpu = torch.tensor(parts.ends, dtype=batch.seq_lens_cpu.dtype)
    part.seq_lens_sum = sum(parts.ends)
    part.extend_prefix_lens_cpu, part.extend_seq_lens_cpu = list(parts.prefix), list(parts.new)
    part.extend_num_tokens = sum(parts.new)
    part.rids = [batch.rids[request] for request in parts.request]
    # SGLang leaves the whole batch's output here; fa3 would write into it.
    part._attn_output = None
    return part
