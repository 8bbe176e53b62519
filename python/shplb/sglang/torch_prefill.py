# SPDX-License-Identifier: Apache-2.0
"""Sparse prefill of one layer over SGLang's token pool, with the torch kernels."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from shplb.kernels.reference import attend_pages
from shplb.kernels.selection import RequestPages
from shplb.sglang.metadata import QueryBlock, StepBudgets
from shplb.sparsity import SparsityRule

Observer = Callable[[QueryBlock, list[torch.Tensor], torch.Tensor], None]


class LayerShare(NamedTuple):
    """What a rank computes of a layer where other ranks hold copies of its heads.

    copied: per local query head, whether there are two; blocks: per local query head, the query blocks [first, end)
    that this rank computes.
    """

    copied: list[bool]
    blocks: list[list[int]]

    def weight(self, head: int, block: int) -> float:
        """What the head's output in a block counts: its columns of o_proj are halved where there are two."""
        first, end = self.blocks[head]
        if not first <= block < end:
            return 0.0
        return 2.0 if self.copied[head] else 1.0


class TorchPrefill:
    """Runs the query blocks of one rank's heads, layer after layer.

    The page of a token is its position // 64 in the request, whatever the pool's own page size is.
    """

    def __init__(self, rule: SparsityRule, local_qo_heads: list[list[int]]) -> None:
        """local_qo_heads: per layer, the logical query head of each local one."""
        self.rule = rule
        self.local_qo_heads = local_qo_heads

    def run(
        self,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        token_slots: list[torch.Tensor],
        step: StepBudgets,
        layer: int,
        sm_scale: float,
        observe: Observer | None = None,
        share: LayerShare | None = None,
    ) -> torch.Tensor:
        """Attention output of a prefill step; ``observe`` gets every block's page lists and scores of all heads; with
        ``share``, heads that have two copies count as it says, and lists of other ranks' blocks are empty.

        q: [num_tokens, local_qo_heads, head_dim]; k_pool, v_pool: [pool_tokens, local_kv_heads, head_dim];
        token_slots: per request, int pool slots of its tokens 0 .. seq_len-1. Returns q's shape and dtype.
        """
        out = torch.empty_like(q)
        heads = self.local_qo_heads[layer]
        for request, slots in enumerate(token_slots):
            k, v = k_pool[slots], v_pool[slots]
            mine = [(index, block) for index, block in enumerate(step.blocks) if block.request == request]
            if not mine:
                continue
            first, last = mine[0][1], mine[-1][1]
            new = q[first.offset : last.offset + last.end_row - last.first_row]
            chooser = RequestPages(self.rule, new, k, first.first_row, sm_scale, whole=step.whole[request])
            for index, block in mine:
                rows = slice(block.offset, block.offset + block.end_row - block.first_row)
                keep = step.keep[layer, heads, index].tolist()
                pages, scores = chooser.choose(block.first_row, block.end_row, keep)
                weights = [1.0 if share is None else share.weight(head, index) for head in range(len(heads))]
                pages = [kept if weight else kept[:0] for kept, weight in zip(pages, weights, strict=True)]
                self._attend(q[rows], k, v, pages, block, sm_scale, out[rows], weights)
                if observe is not None:
                    observe(block, pages, scores)
        return out

    @staticmethod
    def _attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        pages: list[torch.Tensor],
        block: QueryBlock,
        sm_scale: float,
        out: torch.Tensor,
        weights: list[float],
    ) -> None:
        group_size = q.shape[1] // k.shape[1]
        for head, (kept, weight) in enumerate(zip(pages, weights, strict=True)):
            group = head // group_size
            if weight == 0.0:
                out[:, head] = 0.0
                continue
            found = attend_pages(q[:, head], k[:, group], v[:, group], kept, block.first_row, sm_scale)
            out[:, head] = found if weight == 1.0 else found * weight
