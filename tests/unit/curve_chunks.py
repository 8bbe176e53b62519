# SPDX-License-Identifier: Apache-2.0
"""One chunk of a long document in scattered pages, its curves measured by the kernels and by the definition."""

from dataclasses import dataclass

import numpy as np
import torch

from shplb.kernels.block_measurement import BlockMeasurement, BlockRows
from shplb.kernels.paged_curves import PagedCurves
from shplb.kernels.scores import key_vectors
from shplb.kernels.selection import rank_pages
from shplb.sglang.metadata import cut_query_blocks
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages


@dataclass
class CurveChunk:
    """Queries of tokens [prefix, tokens) and a pool of pages between poison, on one device."""

    rule: SparsityRule
    q: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    slots: torch.Tensor
    blocks: list[BlockRows]
    gram: torch.Tensor

    @property
    def sm_scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)

    def curves(self) -> PagedCurves:
        return PagedCurves(self.blocks, self.slots, self.rule, self.q, self.k_pool)

    def measured(self, rows: list[np.ndarray]) -> torch.Tensor:
        return self.curves().layer(self.q, self.k_pool, self.v_pool, self.sm_scale)(rows, self.gram)

    def scores(self) -> torch.Tensor:
        """Of the kernels: [num_qo_heads, num_blocks, num_pages]."""
        return self.curves()._scores(self.q, self.k_pool, self.sm_scale)

    def defined(self, rows: list[np.ndarray]) -> torch.Tensor:
        """The same in float32 torch, pages ranked by the scores of the kernels: float16 decides near ties."""
        k, v = self.k_pool[self.slots].float(), self.v_pool[self.slots].float()
        pooled, scores, found = key_vectors(k, self.rule), self.scores(), []
        for index, (block, chosen) in enumerate(zip(self.blocks, rows, strict=True)):
            q = self.q[block.offset : block.offset + block.end_row - block.first_row].float()
            part = BlockMeasurement(
                q, k.transpose(0, 1), v.transpose(0, 1), pooled, block.first_row, self.sm_scale, self.rule
            )
            seen = scores[:, index, : num_pages(block.end_row)]
            part.order = rank_pages(seen, block.first_row, block.end_row, self.rule)
            found.append(torch.stack(part.curves(torch.from_numpy(chosen).to(q.device), self.gram)))
        return torch.stack(found, dim=2)


def make_chunk(
    prefix: int, tokens: int, *, head_dim: int, group: int, kv_heads: int, query_block: int, seed: int,
    dtype: torch.dtype = torch.float32, device: torch.device | None = None, dense_below_tokens: int = 256,
) -> CurveChunk:  # fmt: skip
    """Keys that differ from page to page, so that pages of high rank hold most of the mass."""
    where = device or torch.device("cpu")
    generator = torch.Generator(where).manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=where)

    count, heads = num_pages(tokens), kv_heads * group
    order = torch.randperm(count + 3, generator=generator, device=where)[:count]
    slots = (order[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=where)).flatten()[:tokens]
    pools = torch.full((2, (count + 3) * PAGE_SIZE, kv_heads, head_dim), float("nan"), dtype=dtype, device=where)
    topics = randn(count, kv_heads, head_dim).repeat_interleave(PAGE_SIZE, dim=0)[:tokens]
    pools[0, slots] = (randn(tokens, kv_heads, head_dim) + topics).to(dtype)
    pools[1, slots] = randn(tokens, kv_heads, head_dim).to(dtype)
    q = (randn(tokens - prefix, heads, head_dim) + randn(heads, head_dim)).to(dtype)
    weight = randn(heads, 48, head_dim)
    rule = SparsityRule(query_block=query_block, dense_below_tokens=dense_below_tokens)
    cut = cut_query_blocks([prefix], [tokens - prefix], query_block)
    blocks = [BlockRows(block.offset, block.first_row, block.end_row) for block in cut]
    gram = torch.einsum("hod,hoe->hde", weight, weight)
    return CurveChunk(rule, q, pools[0], pools[1], slots, blocks, gram)
