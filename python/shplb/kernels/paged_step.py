# SPDX-License-Identifier: Apache-2.0
"""One planned prefill step on the device: its tables, and where each request is in them."""

from dataclasses import dataclass

import numpy as np
import torch

from shplb.kernels.dealt_plan import DealtPlan
from shplb.planner import StepPlan


@dataclass
class PagedStep:
    """One planned step; tensors are on the device and valid until the next step begins."""

    plan: StepPlan
    plan_info: list[list[int]]
    workspace: torch.Tensor
    host: np.ndarray  # the same tables on the CPU, until the buffer is used again two steps later
    total_pages: int  # of the sparse requests, page after page
    max_pages: int  # of the longest of them
    tiles: torch.Tensor
    page_starts: torch.Tensor
    dense_rows: torch.Tensor | None  # int32, rows of q that belong to the stock path; None: none
    req_to_token: torch.Tensor
    req_indices: torch.Tensor
    seq_lens: torch.Tensor
    page_indices: torch.Tensor
    owned: torch.Tensor | None  # int32 [num_layers, num_list_heads, 2], as in the plan; None without replicas
    lens: tuple[np.ndarray, np.ndarray]  # int64 [num_requests], cached and new tokens
    dealt: DealtPlan | None = None  # of the layer under way, where lists are as long as scores say

    def requests(self) -> list["SparseRequest"]:
        """The sparse requests in batch order."""
        found, row, block = [], 0, 0
        of_blocks = self.host_blocks(self.plan.block_request_offset)
        for index, (prefix, new) in enumerate(zip(*(lens.tolist() for lens in self.lens), strict=True)):
            if self.plan.sparse[index]:
                count = int(np.count_nonzero(of_blocks == index))
                found.append(SparseRequest(index, prefix, new, row, block, count))
                block += count
            row += new
        return found

    def query_blocks(self) -> list[tuple[int, int, int, int]]:
        """(request in the batch, first row of q, first row and end row in the request) of every block."""
        plan = self.plan
        offsets = plan.block_request_offset, plan.block_qo_indptr_offset, plan.block_first_row_offset
        columns = [self.host_blocks(offset).tolist() for offset in (*offsets, plan.block_qo_len_offset)]
        return [(request, at, first, first + rows) for request, at, first, rows in zip(*columns, strict=True)]

    def slots(self, request: int, tokens: int) -> torch.Tensor:
        """int64 [tokens], pool slots of a request's first tokens; waits for nothing."""
        row = self.req_to_token.index_select(0, self.req_indices[request : request + 1])
        return row[0, :tokens].long()

    def blocks(self, offset: int) -> torch.Tensor:
        """int32 [num_blocks] at a byte offset of the workspace."""
        return self.words(offset, self.plan.num_blocks)

    def words(self, offset: int, count: int) -> torch.Tensor:
        return words_at(self.workspace, offset, count)

    def hostwords_at(self, offset: int, count: int) -> np.ndarray:
        return self.host[offset : offset + 4 * count].view(np.int32)

    def host_blocks(self, offset: int) -> np.ndarray:
        return self.hostwords_at(offset, self.plan.num_blocks)

    def list_indptr(self, layer: int) -> torch.Tensor:
        """int32 [num_lists + 1], where a layer's lists begin and end."""
        if self.dealt is not None:
            return self.dealt.list_indptr
        return self.words(int(self.plan.list_indptr_offset[layer]), self.plan.num_lists + 1)

    def host_list_indptr(self, layer: int) -> np.ndarray:
        """The same on the CPU; waits for the GPU where lists are as long as scores say."""
        if self.dealt is not None:
            return np.asarray(self.dealt.list_indptr.cpu().numpy())
        return self.hostwords_at(int(self.plan.list_indptr_offset[layer]), self.plan.num_lists + 1)

    def work(self, layer: int) -> tuple[torch.Tensor, list[int]]:
        """(workspace, plan_info) of a layer, as ``Sm90Prefill.run`` takes them."""
        if self.dealt is not None:
            return self.dealt.workspace, self.dealt.plan_info
        return self.workspace, self.plan_info[layer]


@dataclass(frozen=True)
class SparseRequest:
    """Where a request of a step is: in the batch, cached and new tokens, its first row of q, its blocks."""

    index: int
    prefix: int
    new: int
    first_q_row: int
    first_block: int
    num_blocks: int


def words_at(workspace: torch.Tensor, offset: int, count: int) -> torch.Tensor:
    """int32 [count] at a byte offset."""
    return workspace[offset : offset + 4 * count].view(torch.int32)
