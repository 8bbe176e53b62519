# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of an extend batch live in SGLang's pools."""

from typing import Any

import torch


def write_kv(pool: Any, layer: Any, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write new keys and values before attention reads them (paged ordering)."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool.set_kv_buffer(layer, KVWriteLoc(slots, None), k, v)


def token_slots(req_to_token: torch.Tensor, rows: torch.Tensor, ends: list[int]) -> list[torch.Tensor]:
    """Pool slots of the first ``ends[i]`` tokens in row ``rows[i]`` of SGLang's table, int64 each."""
    return [req_to_token[row, :end].long() for row, end in zip(rows, ends, strict=True)]
