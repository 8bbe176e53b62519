# SPDX-License-Identifier: Apache-2.0
"""One prefill step of one layer as the server runs it, over random keys in scattered pages."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from dummy_model import lognormal_budgets

from shplb.kernels.flashinfer_sm90 import Sm90Prefill
from shplb.kernels.paged_prefill import PagedPrefill, paged
from shplb.planner import StepPlanner
from shplb.sparsity import PAGE_SIZE, BudgetTable, SparsityRule, num_pages, query_block_size

DEVICE = torch.device("cuda", 0)
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Shape:
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group_size(self) -> int:
        return self.num_qo_heads // self.num_kv_heads


@dataclass(frozen=True)
class Step:
    prefix: int
    new: int

    def dense_flops(self, shape: Shape) -> float:
        pairs = self.new * self.prefix + self.new * (self.new + 1) / 2
        return 4.0 * shape.head_dim * shape.num_qo_heads * pairs


class Pool:
    """Keys and values of one request in pages that are scattered over a pool, and its queries."""

    def __init__(self, shape: Shape, step: Step, seed: int) -> None:
        generator = torch.Generator(device=DEVICE).manual_seed(seed)
        tokens = step.prefix + step.new
        pages = num_pages(tokens)
        order = torch.randperm(pages, generator=generator, device=DEVICE) + 1
        self.req_to_token = (order[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=DEVICE)).view(1, -1).int()
        size = ((pages + 1) * PAGE_SIZE, shape.num_kv_heads, shape.head_dim)
        self.k, self.v = (torch.randn(size, generator=generator, device=DEVICE, dtype=DTYPE) for _ in range(2))
        self.q = torch.randn(
            (step.new, shape.num_qo_heads, shape.head_dim), generator=generator, device=DEVICE, dtype=DTYPE
        )


class OurStep:
    def __init__(
        self, shape: Shape, step: Step, density: float, *, seed: int, sigma: float, shared_lists: bool = False,
        naive_order: bool = False, num_layers: int = 32,
    ) -> None:  # fmt: skip
        self.shape, self.step, self.num_layers = shape, step, num_layers
        self.pool = Pool(shape, step, seed)
        rule = SparsityRule(query_block=query_block_size(shape.head_dim), dense_below_tokens=0)
        shares = np.tile(lognormal_budgets((1, shape.num_qo_heads, 1), density, sigma, seed), (num_layers, 1, 1))
        slots = np.tile(np.arange(shape.num_kv_heads, dtype=np.int32), (num_layers, 1, 1))
        self.kernel = Sm90Prefill(DTYPE, shape.head_dim, DEVICE)
        planner = StepPlanner(
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            keep_pages=BudgetTable(shares, np.array([PAGE_SIZE]), rule, step.prefix + step.new).pages,
            slot_groups=slots,
            rank=0,
            shared_lists=shared_lists,
            num_ctas=self.kernel.num_ctas,
        )
        self.prefill = PagedPrefill(
            planner, self.kernel, rule,
            num_list_heads=shape.num_kv_heads if shared_lists else shape.num_qo_heads,
            group_size=shape.group_size, device=DEVICE, usual_new_tokens=step.new,
        )  # fmt: skip
        self.out = torch.empty_like(self.pool.q)
        self.sm_scale = shape.head_dim**-0.5
        self.begin()
        self.pages = self.select()
        if naive_order:
            self._order_naively()
        self.flops, self.density = self._computed()

    def begin(self) -> None:
        indices = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        lens = torch.full((1,), self.step.prefix + self.step.new, dtype=torch.int64, device=DEVICE)
        planned = self.prefill.begin_step(
            [self.step.prefix], [self.step.new], self.pool.req_to_token, indices, lens, "sparse"
        )
        assert planned is not None
        self.planned = planned

    def select(self) -> torch.Tensor:
        return self.prefill.select(self.planned, 0, self.pool.q, self.pool.k, self.sm_scale)

    def attend(self) -> None:
        self.kernel.run(
            self.pool.q, paged(self.pool.k), paged(self.pool.v), self.pages, self.planned.workspace,
            self.planned.plan_info[0], self.out, self.sm_scale,
        )  # fmt: skip

    def run(self) -> None:
        self.prefill.run(self.planned, 0, self.pool.q, self.pool.k, self.pool.v, self.sm_scale, self.out)

    def parts(self) -> dict[str, Callable[[], object]]:
        """The kernels of selection one by one."""
        prefill, step, pool = self.prefill, self.planned, self.pool
        queries, keys = prefill.pool_queries(step, pool.q), prefill.pool_keys(step, pool.k)
        scores = prefill.page_mass(step, queries, keys, self.sm_scale)
        return {
            "pool_keys": lambda: prefill.pool_keys(step, pool.k),
            "pool_queries": lambda: prefill.pool_queries(step, pool.q),
            "page_mass": lambda: prefill.page_mass(step, queries, keys, self.sm_scale),
            "top_pages": lambda: prefill.top_pages(step, 0, scores, step.page_indices),
        }

    @property
    def predicted_ms(self) -> float:
        return int(self.planned.plan.cta_makespan_ns[0]) / 1e6

    def _table(self, index: int, count: int) -> np.ndarray:
        offset = self.planned.plan_info[0][index]
        return self.planned.words(offset, count).cpu().numpy()

    def _computed(self) -> tuple[float, float]:
        """Floating-point operations of all work items, and their share of dense."""
        items = self.planned.plan.num_items
        rows, tokens = self._table(3, items).astype(np.float64), self._table(4, items).astype(np.float64)
        flops = float(4.0 * self.shape.head_dim * (rows * tokens - rows * (rows - 1) / 2).sum())
        return flops, flops / self.step.dense_flops(self.shape)

    def _order_naively(self) -> None:
        """Head after head, every CTA an equal number of items: what a schedule blind to list lengths does."""
        items, ctas = self.planned.plan.num_items, self.kernel.num_ctas
        info = self.planned.plan_info[0]
        order = np.lexsort((self._table(1, items), self._table(5, items)))
        for index in (0, 1, 2, 3, 4, 5):
            values = torch.from_numpy(self._table(index, items)[order].copy()).to(DEVICE)
            self.planned.words(info[index], items).copy_(values)
        indptr = np.linspace(0, items, ctas + 1).astype(np.int32)
        self.planned.words(info[6], ctas + 1).copy_(torch.from_numpy(indptr).to(DEVICE))
