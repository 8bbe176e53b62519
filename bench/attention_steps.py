# SPDX-License-Identifier: Apache-2.0
"""One prefill step of one layer as the server runs it, over random keys in scattered pages."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from shplb.kernels.flashinfer_sm90 import Sm90Prefill
from shplb.kernels.page_mass import page_mass
from shplb.kernels.paged_prefill import PagedPrefill, paged
from shplb.kernels.pooling import pool_keys, pool_queries
from shplb.kernels.top_pages import top_pages
from shplb.planner import StepPlanner
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages, query_block_size

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
        self.slots = self.req_to_token[0, :tokens]


def lognormal_shares(num_heads: int, density: float, sigma: float, seed: int) -> np.ndarray:
    """Budgets with the spread of a real profile, scaled such that their mean is the density; sigma 0: all equal."""
    shares = np.random.default_rng(seed).lognormal(0.0, sigma, num_heads) if sigma else np.ones(num_heads)
    for _ in range(50):  # clipping at 1 takes away from the mean
        shares = np.clip(shares * density / shares.mean(), 0.002, 1.0)
    return np.asarray(shares)


class OurStep:
    def __init__(
        self, shape: Shape, step: Step, density: float, *, seed: int, sigma: float, shared_lists: bool = False,
        naive_order: bool = False, num_layers: int = 32,
    ) -> None:  # fmt: skip
        self.shape, self.step, self.num_layers = shape, step, num_layers
        self.pool = Pool(shape, step, seed)
        self.rule = SparsityRule(query_block=query_block_size(shape.head_dim))
        visible = np.arange(num_pages(step.prefix + step.new) + 1)
        shares = lognormal_shares(shape.num_qo_heads, density, sigma, seed)
        keep = np.clip(np.ceil(shares[:, None] * visible), np.minimum(4, visible), visible).astype(np.int32)
        slots = np.arange(shape.num_kv_heads, dtype=np.int32).reshape(1, 1, -1)
        self.planner = StepPlanner(
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            keep_pages=np.ascontiguousarray(np.tile(keep, (num_layers, 1, 1))),
            slot_groups=np.ascontiguousarray(np.tile(slots, (num_layers, 1, 1))),
            rank=0,
            shared_lists=shared_lists,
            num_ctas=torch.cuda.get_device_properties(DEVICE).multi_processor_count,
        )
        self.prefill = PagedPrefill(
            self.planner, Sm90Prefill(DTYPE, shape.head_dim, DEVICE), self.rule,
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
        self.prefill.attention.run(
            self.pool.q, paged(self.pool.k), paged(self.pool.v), self.pages, self.planned.workspace,
            self.planned.plan_info[0], self.out, self.sm_scale,
        )  # fmt: skip

    def run(self) -> None:
        self.prefill.run(self.planned, 0, self.pool.q, self.pool.k, self.pool.v, self.sm_scale, self.out)

    def parts(self) -> dict[str, Callable[[], object]]:
        """The kernels of selection one by one."""
        step, rule, pool, plan = self.planned, self.rule, self.pool, self.planned.plan
        first, request = step.blocks(plan.block_first_row_offset), step.blocks(plan.block_request_offset)
        rows, at = step.blocks(plan.block_qo_len_offset), step.blocks(plan.block_qo_indptr_offset)
        stride = rule.score_stride

        def keys() -> torch.Tensor:
            return pool_keys(pool.k, step.req_to_token, step.req_indices, step.seq_lens, step.page_starts,
                             step.total_pages, step.max_pages, stride)  # fmt: skip

        def queries() -> torch.Tensor:
            return pool_queries(pool.q, first, at, rows, rule.query_block, stride)

        pooled_q, pooled_k = queries(), keys()

        def mass() -> torch.Tensor:
            return page_mass(pooled_q, pooled_k, step.tiles, request, first, rows, step.page_starts, step.max_pages,
                             stride, self.sm_scale)  # fmt: skip

        scores = mass()
        indptr = step.words(int(plan.list_indptr_offset[0]), plan.num_lists + 1)

        def top() -> None:
            top_pages(scores, indptr, request, first, rows, step.req_to_token, step.req_indices,
                      self.prefill.num_list_heads, rule, step.page_indices)  # fmt: skip

        return {"pool_keys": keys, "pool_queries": queries, "page_mass": mass, "top_pages": top}

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
        items, ctas = self.planned.plan.num_items, self.planner_ctas
        info = self.planned.plan_info[0]
        order = np.lexsort((self._table(1, items), self._table(5, items)))
        for index in (0, 1, 2, 3, 4, 5):
            values = torch.from_numpy(self._table(index, items)[order].copy()).to(DEVICE)
            self.planned.words(info[index], items).copy_(values)
        indptr = np.linspace(0, items, ctas + 1).astype(np.int32)
        self.planned.words(info[6], ctas + 1).copy_(torch.from_numpy(indptr).to(DEVICE))

    @property
    def planner_ctas(self) -> int:
        return int(torch.cuda.get_device_properties(DEVICE).multi_processor_count)
