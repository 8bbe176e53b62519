# SPDX-License-Identifier: Apache-2.0
"""A prefill batch over a scattered paged pool, planned by the real planner; on the GPU if there is one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from shplb.kernels.paged_prefill import PagedPrefill
from shplb.kernels.paged_step import PagedStep
from shplb.planner import Mode, StepPlanner
from shplb.policies import POLICIES, Policy
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages, query_block_size

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
LAYERS = 2


@dataclass
class Block:
    index: int
    request: int
    first_row: int
    end_row: int
    offset: int

    @property
    def visible(self) -> int:
        return num_pages(self.end_row)


@dataclass
class PagedBatch:
    prefill: PagedPrefill
    step: PagedStep
    rule: SparsityRule
    q: torch.Tensor  # [num_rows, heads, dim]
    k_pool: torch.Tensor  # [pool_tokens, kv_heads, dim]
    v_pool: torch.Tensor
    req_to_token: torch.Tensor
    req_indices: torch.Tensor
    seq_lens: list[int]

    @property
    def sm_scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)

    def select(self, layer: int, observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> torch.Tensor:
        return self.prefill.select(self.step, layer, self.q, self.k_pool, self.sm_scale, observe)

    def blocks(self) -> list[Block]:
        plan = self.step.plan
        offsets = (plan.block_request_offset, plan.block_first_row_offset, plan.block_qo_len_offset,
                   plan.block_qo_indptr_offset)  # fmt: skip
        columns = [self.step.blocks(offset).tolist() for offset in offsets]
        return [
            Block(i, r, first, first + rows, at) for i, (r, first, rows, at) in enumerate(zip(*columns, strict=True))
        ]

    def lists(self, block: Block, layer: int) -> dict[int, tuple[int, int]]:
        """List head -> [start, end) of its list for a block."""
        plan = self.step.plan
        indptr = self.step.list_indptr(layer).tolist()
        heads = plan.num_lists // plan.num_blocks
        places = [head * plan.num_blocks + block.index for head in range(heads)]
        return {head: (indptr[at], indptr[at + 1]) for head, at in enumerate(places)}

    def slots(self, request: int) -> torch.Tensor:
        return self.req_to_token[self.req_indices[request], : self.seq_lens[request]].long()

    def keys_of(self, request: int) -> torch.Tensor:
        return self.k_pool[self.slots(request)]

    def physical(self, request: int, pages: torch.Tensor) -> torch.Tensor:
        return self.slots(request).cpu()[pages * PAGE_SIZE] // PAGE_SIZE


def make_batch(
    prefix_lens: list[int],
    new_lens: list[int],
    *,
    head_dim: int,
    group: int,
    kv_heads: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    density: tuple[float, float] = (0.02, 0.9),
    shared_lists: bool = False,
    mode: Mode = "sparse",
    attention: object = None,
    policy: Policy = POLICIES["shplb"],
) -> PagedBatch:
    """Random budgets, keys and queries; pages of all requests scattered over a pool with poison between them."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    lens = [prefix + new for prefix, new in zip(prefix_lens, new_lens, strict=True)]
    pages = [num_pages(length) for length in lens]
    pool_pages = sum(pages) + 5
    order = torch.randperm(pool_pages - 1, generator=generator)[: sum(pages)] + 1  # page 0 is SGLang's padding
    rows = torch.randperm(len(lens) + 3, generator=generator)[: len(lens)]
    req_to_token = torch.full((len(lens) + 3, max(pages) * PAGE_SIZE + 64), 10**6, dtype=torch.int32)
    for row, own in zip(rows.tolist(), order.split(pages), strict=True):
        tokens = (own[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE)).reshape(-1)
        req_to_token[row, : len(tokens)] = tokens.to(torch.int32)
    pools = torch.full((2, pool_pages * PAGE_SIZE, kv_heads, head_dim), float("nan"), dtype=dtype)
    for row, length in zip(rows.tolist(), lens, strict=True):
        own = req_to_token[row, :length].long()
        pools[:, own] = torch.randn(2, length, kv_heads, head_dim, generator=generator).to(dtype)
    q = (torch.randn(sum(new_lens), group * kv_heads, head_dim, generator=generator) * 2).to(dtype)

    rule = policy.rule(SparsityRule(query_block=query_block_size(head_dim), dense_below_tokens=0))
    planner = make_planner(rng, rule, max(pages) + 1, head_dim, group, kv_heads, density, shared_lists)
    prefill = PagedPrefill(
        planner, attention, rule,  # type: ignore[arg-type]
        num_list_heads=kv_heads * (1 if shared_lists else group), group_size=group, device=DEVICE, usual_new_tokens=1,
    )  # fmt: skip
    table, indices = req_to_token.to(DEVICE), rows.to(DEVICE)
    step = prefill.begin_step(prefix_lens, new_lens, table, indices, torch.tensor(lens).to(DEVICE), mode)
    assert step is not None
    k_pool, v_pool = pools.to(DEVICE)
    return PagedBatch(prefill, step, rule, q.to(DEVICE), k_pool, v_pool, table, indices, lens)


def make_planner(
    rng: np.random.Generator, rule: SparsityRule, max_pages: int, head_dim: int, group: int, kv_heads: int,
    density: tuple[float, float], shared_lists: bool,
) -> StepPlanner:  # fmt: skip
    shares = rng.uniform(*density, (LAYERS, kv_heads * group, 1))
    keep = BudgetTable(shares, np.array([PAGE_SIZE]), rule, max_pages * PAGE_SIZE).pages
    slots = np.tile(np.arange(kv_heads, dtype=np.int32), (LAYERS, 1, 1))
    ctas = torch.cuda.get_device_properties(0).multi_processor_count if DEVICE.type == "cuda" else 132
    return StepPlanner(
        num_kv_heads=kv_heads, head_dim=head_dim, keep_pages=keep, slot_groups=slots, rank=0,
        sink_pages=rule.sink_pages, local_pages=rule.local_pages, shared_lists=shared_lists, num_ctas=ctas,
    )  # fmt: skip
