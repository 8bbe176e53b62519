# SPDX-License-Identifier: Apache-2.0
"""Where the tokens of an extend batch live in SGLang's pools."""

from typing import Any

import torch


def write_kv(pool: Any, layer: Any, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Write new keys and values before attention reads them (paged ordering)."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool.set_kv_buffer(layer, KVWriteLoc(slots, None), k, v)


def token_slots(req_to_token: torch.Tensor, forward_batch: Any) -> list[torch.Tensor]:
    """Pool slots of every token of every request of an extend batch, prefix included."""
    lens = zip(forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu, strict=True)
    return [
        req_to_token[request, : prefix + new].long()
        for request, (prefix, new) in zip(forward_batch.req_pool_indices, lens, strict=True)
    ]
