# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer's sm90 kernel does with a work plan, in plain torch: reads the same tables, item by item."""

import torch

from shplb.kernels.flashinfer_sm90 import paged
from shplb.kernels.paged_step import PagedStep


class TorchPagedAttention:
    """Stands in for Sm90Prefill where there is no GPU."""

    num_ctas = 7

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device("cpu"), dtype

    def run_layer(
        self, step: PagedStep, layer: int, pages: torch.Tensor, q: torch.Tensor, k_pool: torch.Tensor,
        v_pool: torch.Tensor, sm_scale: float, out: torch.Tensor,
    ) -> None:  # fmt: skip
        self.run(q, paged(k_pool), paged(v_pool), pages, *step.work(layer), out, sm_scale)

    def run(
        self, q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, page_indices: torch.Tensor,
        workspace: torch.Tensor, plan_info: list[int], out: torch.Tensor, sm_scale: float,
    ) -> None:  # fmt: skip
        def table(index: int) -> torch.Tensor:
            return workspace[plan_info[index] : plan_info[index] // 4 * 4 + 4 * count].view(torch.int32)

        count = self.num_ctas + 1
        count = int(table(6)[-1])
        group, page_size = q.shape[1] // k_pages.shape[2], k_pages.shape[1]
        columns = [table(index).tolist() for index in (1, 2, 3, 4, 5)]
        for row, start, rows, tokens, head in zip(*columns, strict=True):
            pages = page_indices[start : start - (-tokens // page_size)].long()
            k, v = (pool[pages, :, head // group].flatten(0, 1)[:tokens].float() for pool in (k_pages, v_pages))
            item = slice(row, row + rows)
            mask = torch.arange(tokens)[None] <= torch.arange(rows)[:, None] + tokens - rows
            logits = (q[item, head].float() @ k.T * sm_scale).masked_fill(~mask, float("-inf"))
            out[item, head] = (torch.softmax(logits, dim=-1) @ v).to(out.dtype)
