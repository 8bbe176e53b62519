# SPDX-License-Identifier: Apache-2.0
"""Sparse prefill through FlashInfer's public paged wrapper (fa2): for GPUs without the sm90 kernel.

To the wrapper, every page list is a request of one KV head: list heads become requests by a head-major copy of q, KV
heads by page numbers into a view of the pool whose pages begin at every (token, head). Lengths are known on the CPU, so
nothing waits for the GPU, but ``plan()`` costs about 4 us of CPU per list and layer, which the sm90 path does not.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from shplb.kernels.flashinfer_sm90 import DTYPES, KernelUnavailableError
from shplb.sparsity import PAGE_SIZE

if TYPE_CHECKING:
    from shplb.kernels.paged_step import PagedStep

_HEAD_DIMS = (64, 128, 256)
_FLOAT_WORKSPACE_BYTES = 128 << 20
# plan() fills a pinned buffer that its wrapper copies from when the GPU gets there: so many layers may be under way.
_WRAPPERS = 4


class _Rows(NamedTuple):
    """What the layers of a step share."""

    rows: torch.Tensor | None  # int64, rows of q in block order; None: all of them as they are
    qo_indptr: torch.Tensor  # int32 [num_lists + 1] on the CPU
    last_page_len: torch.Tensor  # int32 [num_lists] on the CPU


class PublicPrefill:
    """Stands in for :class:`Sm90Prefill`; same lists, same results."""

    def __init__(self, dtype: torch.dtype, head_dim: int, device: torch.device) -> None:
        """KernelUnavailableError if FlashInfer has no such kernel for this GPU."""
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
            raise KernelUnavailableError(f"{device} is no GPU of compute capability 8.0 or later.")
        if dtype not in DTYPES or head_dim not in _HEAD_DIMS:
            raise KernelUnavailableError(
                f"FlashInfer's paged wrapper has no variant for {dtype} and head_dim {head_dim}; serve in bfloat16 or "
                f"float16, with head_dim {', '.join(map(str, _HEAD_DIMS))}."
            )
        from flashinfer import BatchPrefillWithPagedKVCacheWrapper

        self.dtype, self.head_dim, self.device = dtype, head_dim, device
        self.num_ctas = int(torch.cuda.get_device_properties(device).multi_processor_count)
        workspace = torch.empty(_FLOAT_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers = [
            BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2") for _ in range(_WRAPPERS)
        ]
        self._planned: list[torch.cuda.Event | None] = [None] * _WRAPPERS
        self._turn = 0
        self._step: PagedStep | None = None
        self._rows: _Rows | None = None

    def run_layer(
        self,
        step: "PagedStep",
        layer: int,
        pages: torch.Tensor,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        sm_scale: float,
        out: torch.Tensor,
    ) -> None:
        """As ``PagedPrefill.attend``."""
        lists, kv_heads = step.plan.num_lists // step.plan.num_blocks, k_pool.shape[1]
        shared = self._rows_of(step, lists)
        wrapper = self._plan(step, layer, shared, pages, q.shape[1] // lists, kv_heads, sm_scale)
        chosen = q if shared.rows is None else q[shared.rows]
        by_list = chosen.reshape(len(chosen), lists, -1, self.head_dim).transpose(0, 1).flatten(0, 1).contiguous()
        found = wrapper.run(by_list, (_pages_of_heads(k_pool), _pages_of_heads(v_pool)))
        found = found.view(lists, len(chosen), -1, self.head_dim).transpose(0, 1).reshape(chosen.shape)
        if shared.rows is None:
            out.copy_(found)
        else:
            out.index_copy_(0, shared.rows, found)

    def _rows_of(self, step: "PagedStep", lists: int) -> _Rows:
        if self._step is step and self._rows is not None:
            return self._rows
        plan = step.plan
        starts, lens, first_rows = (
            step.host_blocks(offset)
            for offset in (plan.block_qo_indptr_offset, plan.block_qo_len_offset, plan.block_first_row_offset)
        )
        index = None
        if step.dense_rows is not None:
            rows = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lens, strict=True)])
            index = torch.from_numpy(rows.astype(np.int64)).to(self.device)
        last = np.tile((first_rows + lens - 1) % PAGE_SIZE + 1, lists).astype(np.int32)
        indptr = np.concatenate([[0], np.cumsum(np.tile(lens, lists))]).astype(np.int32)
        self._step, self._rows = step, _Rows(index, torch.from_numpy(indptr), torch.from_numpy(last))
        return self._rows

    def _plan(
        self, step: "PagedStep", layer: int, shared: _Rows, pages: torch.Tensor, heads: int, kv_heads: int,
        sm_scale: float,
    ) -> Any:  # fmt: skip
        turn = self._turn = (self._turn + 1) % _WRAPPERS
        planned = self._planned[turn]
        if planned is not None:
            planned.synchronize()
        indptr = step.host_list_indptr(layer)
        blocks = step.plan.num_blocks
        lists = step.plan.num_lists // blocks
        per_head = np.diff(indptr[::blocks]).astype(np.int64)  # entries of every list head
        kv_head = torch.arange(lists, device=self.device, dtype=torch.int32) * kv_heads // lists
        counts = torch.from_numpy(per_head).to(self.device, non_blocking=True)
        head_of = torch.repeat_interleave(kv_head, counts, output_size=int(per_head.sum()))
        numbers = pages[: len(head_of)] * (PAGE_SIZE * kv_heads) + head_of
        wrapper = self._wrappers[turn]
        wrapper.plan(
            shared.qo_indptr, torch.from_numpy(indptr.copy()), numbers, shared.last_page_len, heads, 1, self.head_dim,
            PAGE_SIZE, causal=True, sm_scale=sm_scale, q_data_type=self.dtype, kv_data_type=self.dtype,
            disable_split_kv=True,
        )  # fmt: skip
        event = planned or torch.cuda.Event()
        event.record()
        self._planned[turn] = event
        return wrapper


def _pages_of_heads(pool: torch.Tensor) -> torch.Tensor:
    """``[pool_tokens, num_kv_heads, head_dim]`` as pages ``[.., 64, 1, head_dim]`` of one head: page p of head h is
    number ``p * 64 * num_kv_heads + h``."""
    tokens, heads, dim = pool.shape
    pages = tokens // PAGE_SIZE
    count = (pages - 1) * PAGE_SIZE * heads + heads
    return pool.as_strided((count, PAGE_SIZE, 1, dim), (dim, heads * dim, dim, 1))
