# SPDX-License-Identifier: Apache-2.0
"""Vertical and slash lines of one request's attention, in pages, estimated from its last queries.

As vertical-slash heads of MInference do (arXiv 2407.02490); there lines are single tokens, here pages, since pages are
what the attention kernel reads.
"""

import torch

from shplb.sparsity import PAGE_SIZE, num_pages

#: Queries that lines are estimated from, as in MInference.
LAST_QUERIES = 64


class Lines:
    """Mass of the last queries of the new tokens along columns and diagonals.

    Attributes:
        columns: float32 [num_qo_heads, num_pages], share of the mass on each page.
        diagonals: float32 [num_qo_heads, num_pages], share of it so many pages before the query's own.
    """

    def __init__(self, q: torch.Tensor, k: torch.Tensor, sm_scale: float) -> None:
        """q: [num_rows, num_qo_heads, head_dim], the new tokens; k: [num_tokens, num_kv_heads, head_dim], all tokens so
        far."""
        last, tokens, pages = q[-LAST_QUERIES:], k.shape[0], num_pages(k.shape[0])
        first = tokens - len(last)
        row = torch.arange(first, tokens, device=q.device)
        future = torch.arange(tokens, device=q.device)[None] > row[:, None]
        # One KV head after the other: all weights at once would be a gigabyte at 128K.
        groups = last.transpose(0, 1).unflatten(0, (k.shape[1], -1))
        parts = [_page_mass(groups[head], k[:, head].to(q.dtype), future, sm_scale) for head in range(k.shape[1])]
        mass = torch.cat(parts)  # [num_qo_heads, num_last, num_pages]
        self.columns = mass.mean(dim=1)
        self.diagonals = torch.zeros_like(self.columns)
        for page in range(first // PAGE_SIZE, pages):
            own = mass[:, max(page * PAGE_SIZE - first, 0) : (page + 1) * PAGE_SIZE - first]
            self.diagonals[:, : page + 1] += own[:, :, : page + 1].sum(dim=1).flip(-1) / len(last)

    def page_scores(self, first_rows: torch.Tensor, end_rows: torch.Tensor, query_block: int) -> torch.Tensor:
        """float32 [num_qo_heads, num_blocks, num_pages]: mass of a page's column, and of the diagonals through it.

        first_rows, end_rows: int64 [num_blocks], absolute rows of each block, at most ``query_block`` of them. The
        diagonals of a block are the mean of those from each of its own pages. Pages that a block does not see score
        their column.
        """
        first, last = first_rows // PAGE_SIZE, (end_rows - 1) // PAGE_SIZE
        page = torch.arange(self.columns.shape[1], device=self.columns.device)
        scores = self.columns[:, None].repeat(1, len(first), 1)
        for step in range(query_block // PAGE_SIZE + 1):
            own = first + step
            distance = own[:, None] - page[None]
            real = (distance >= 0) & (own <= last)[:, None]
            weight = torch.where(real, 1.0 / (last - first + 1)[:, None], 0.0)
            scores += self.diagonals[:, distance.clamp(0, len(page) - 1)] * weight
        return scores


def _page_mass(q: torch.Tensor, k: torch.Tensor, future: torch.Tensor, sm_scale: float) -> torch.Tensor:
    """float32 [group_size, num_rows, num_pages] of q [group_size, num_rows, head_dim] and k [num_tokens, head_dim]."""
    logits = (q @ k.T).float().mul_(sm_scale).masked_fill_(future, float("-inf"))
    mass = torch.nn.functional.pad(torch.softmax(logits, dim=-1), (0, -k.shape[0] % PAGE_SIZE))
    return mass.unflatten(-1, (-1, PAGE_SIZE)).sum(dim=-1)
