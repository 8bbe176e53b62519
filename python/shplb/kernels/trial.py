# SPDX-License-Identifier: Apache-2.0
"""One prefill step of one layer as the server runs it, over random keys in scattered pages: to be timed and checked."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from shplb.kernels.choice import PagedKernel
from shplb.kernels.paged_prefill import PagedPrefill
from shplb.kernels.paged_step import PagedStep, words_at
from shplb.planner import CostModel, StepPlanner
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages


@dataclass(frozen=True)
class Shape:
    """Attention of one rank."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group_size(self) -> int:
        return self.num_qo_heads // self.num_kv_heads


@dataclass(frozen=True)
class Step:
    """``new`` tokens of one request after ``prefix`` cached ones."""

    prefix: int
    new: int

    def dense_flops(self, shape: Shape) -> float:
        pairs = self.new * self.prefix + self.new * (self.new + 1) / 2
        return 4.0 * shape.head_dim * shape.num_qo_heads * pairs


class Pool:
    """Keys and values of one request in pages that are scattered over a pool, and its queries."""

    def __init__(self, shape: Shape, step: Step, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        generator = torch.Generator(device=device).manual_seed(seed)
        pages = num_pages(step.prefix + step.new)
        order = torch.randperm(pages, generator=generator, device=device) + 1
        self.req_to_token = (order[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=device)).view(1, -1).int()

        def random(tokens: int, heads: int) -> torch.Tensor:
            return torch.randn((tokens, heads, shape.head_dim), generator=generator, device=device, dtype=dtype)

        self.k, self.v = (random((pages + 1) * PAGE_SIZE, shape.num_kv_heads) for _ in range(2))
        self.q = random(step.new, shape.num_qo_heads)


class TrialStep:
    """A planned step, whose parts can be run again and again."""

    def __init__(
        self,
        kernel: PagedKernel,
        rule: SparsityRule,
        shape: Shape,
        step: Step,
        shares: np.ndarray,
        *,
        num_layers: int = 1,
        shared_lists: bool = False,
        cost: CostModel | None = None,
        seed: int = 0,
    ) -> None:
        """shares: float64 ``[num_qo_heads]``, budgets of every layer; all layers but the first are planned only."""
        self.kernel, self.shape, self.step, self.num_layers = kernel, shape, step, num_layers
        self.pool = Pool(shape, step, kernel.dtype, kernel.device, seed)
        self.rule = rule
        keep = BudgetTable(shares.reshape(1, -1, 1), np.array([PAGE_SIZE]), rule, step.prefix + step.new).pages
        slots = np.arange(shape.num_kv_heads, dtype=np.int32).reshape(1, 1, -1)
        self.planner = StepPlanner(
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            keep_pages=np.tile(keep, (num_layers, 1, 1)),
            slot_groups=np.tile(slots, (num_layers, 1, 1)),
            rank=0,
            sink_pages=rule.sink_pages,
            local_pages=rule.local_pages,
            shared_lists=shared_lists,
            num_ctas=kernel.num_ctas,
            cost=cost,
        )
        self.prefill = PagedPrefill(
            self.planner, kernel, rule,
            num_list_heads=shape.num_kv_heads if shared_lists else shape.num_qo_heads,
            group_size=shape.group_size, device=kernel.device, usual_new_tokens=step.new,
        )  # fmt: skip
        self.out = torch.full_like(self.pool.q, float("nan"))
        self.sm_scale = shape.head_dim**-0.5
        self.planned = self.begin()
        self.pages = self.select()

    def begin(self) -> PagedStep:
        """Plan the step and upload its tables."""
        indices = torch.zeros(1, dtype=torch.int64, device=self.kernel.device)
        lens = indices + self.step.prefix + self.step.new
        planned = self.prefill.begin_step(
            [self.step.prefix], [self.step.new], self.pool.req_to_token, indices, lens, "sparse"
        )
        assert planned is not None
        self.planned = planned
        return planned

    def select(self, observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> torch.Tensor:
        return self.prefill.select(self.planned, 0, self.pool.q, self.pool.k, self.sm_scale, observe)

    def attend(self) -> None:
        pool = self.pool
        self.prefill.attend(self.planned, 0, self.pages, pool.q, pool.k, pool.v, self.sm_scale, self.out)

    def run(self) -> None:
        self.prefill.run(self.planned, 0, self.pool.q, self.pool.k, self.pool.v, self.sm_scale, self.out)

    def table(self, index: int) -> np.ndarray:
        """int32 ``[num_items]``, one of the work plan's tables: 0 qo_tile_indices, 1 qo_indptr, 2 kv_indptr, 3 qo_len,
        4 kv_len, 5 head_indices."""
        workspace, plan_info = self.planned.work(0)
        return words_at(workspace, plan_info[index], self.planned.plan.num_items).cpu().numpy()
