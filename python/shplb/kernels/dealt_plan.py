# SPDX-License-Identifier: Apache-2.0
"""Work plans made on the GPU, for lists whose lengths only the GPU knows; in the tables that the sm90 kernel reads.

Items are sorted by length and dealt to the CTAs forth and back, as ``plan_work(method="snake")`` does on the CPU. That
needs no wait and no upload, but is further from the bound than the planner where a CTA gets few items.
"""

from typing import NamedTuple

import torch

from shplb.sparsity import PAGE_SIZE

_WORDS = 4  # of 4 bytes: arrays begin at multiples of 16 bytes


class Blocks(NamedTuple):
    """int32 [num_blocks] each, on the GPU: row of q, rows, absolute position of the first row."""

    qo_indptr: torch.Tensor
    qo_len: torch.Tensor
    first_row: torch.Tensor


class DealtPlan(NamedTuple):
    """One layer's lists and work.

    Attributes:
        list_indptr: int32 [num_lists + 1], as the planner's.
        workspace, plan_info: as ``Sm90Prefill.run`` takes them.
    """

    list_indptr: torch.Tensor
    workspace: torch.Tensor
    plan_info: list[int]


def deal_work(counts: torch.Tensor, blocks: Blocks, heads_per_list: int, num_ctas: int) -> DealtPlan:
    """Plan the items of lists with ``counts`` pages, int32 [num_list_heads * num_blocks], list heads outermost."""
    device, num_blocks = counts.device, len(blocks.qo_len)
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    indptr = torch.cat([zero, torch.cumsum(counts, 0, dtype=torch.int32)])
    unused = -(blocks.first_row + blocks.qo_len) % PAGE_SIZE
    by_list = counts.view(-1, num_blocks)
    tokens = torch.where(by_list > 0, by_list * PAGE_SIZE - unused, 0).repeat_interleave(heads_per_list, dim=0)
    items = tokens.numel()
    order = torch.sort(tokens.view(-1), descending=True, stable=True).indices[_ranks_by_cta(items, num_ctas, device)]
    block, head = order % num_blocks, order // num_blocks
    length = -(-items // _WORDS) * _WORDS
    tables = torch.zeros(7 * length + num_ctas + 1, dtype=torch.int32, device=device)
    # qo_tile_indices and batch_indices, the first and the last, are zeros.
    columns = (
        blocks.qo_indptr[block], indptr[head // heads_per_list * num_blocks + block], blocks.qo_len[block],
        tokens.view(-1)[order], head,
    )  # fmt: skip
    for index, column in enumerate(columns, start=1):
        tables[index * length : index * length + items] = column
    tables[7 * length :] = _work_indptr(items, num_ctas, device)
    offsets = [*(4 * index * length for index in range(6)), 4 * 7 * length, 4 * 6 * length]
    return DealtPlan(indptr, tables.view(torch.uint8), [*offsets, 0])


def _ranks_by_cta(items: int, num_ctas: int, device: torch.device) -> torch.Tensor:
    """int64 [items]: by descending length, which item stands at each place of the table, CTA after CTA."""
    rank = torch.arange(items, device=device)
    row, column = rank // num_ctas, rank % num_ctas
    cta = torch.where(row % 2 == 0, column, num_ctas - 1 - column)
    return torch.argsort(cta * (items + 1) + row)


def _work_indptr(items: int, num_ctas: int, device: torch.device) -> torch.Tensor:
    """int64 [num_ctas + 1]: where each CTA's items begin."""
    rows, rest = divmod(items, num_ctas)
    cta = torch.arange(num_ctas + 1, device=device)
    extra = cta.clamp(max=rest) if rows % 2 == 0 else (cta - (num_ctas - rest)).clamp(min=0)
    return cta * rows + extra
