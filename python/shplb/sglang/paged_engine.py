# SPDX-License-Identifier: Apache-2.0
"""Prefill steps on GPUs: the C++ planner, Triton page selection, one of FlashInfer's kernels."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.kernels.choice import PagedKernel
from shplb.kernels.paged_prefill import PagedPrefill
from shplb.kernels.paged_step import PagedStep
from shplb.kernels.shadow import kept_pages, pages_of_tokens
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.planner import CostModel, StepPlanner
from shplb.sglang.batches import DensePart, Route, sub_batch, upload
from shplb.sglang.dealt_counts import DealtCounts
from shplb.sglang.metadata import QueryBlock, cut_query_blocks
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.parts import Parts, parts_of
from shplb.sglang.shadow_check import ShadowCheck
from shplb.sglang.step_monitor import StepMonitor
from shplb.sglang.trace import StepTrace
from shplb.sparsity import PAGE_SIZE, num_pages, visible_pages


def planning_threads(tp_size: int) -> int:
    """Threads of one rank's planner: a few, and never more than this rank's part of the cores can run."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // (2 * tp_size)))


class PagedEngine:
    """Sends every request of a step the way that is predicted to end soonest: ours, or the base backend's."""

    def __init__(
        self, plan: ServingPlan, rank: int, max_tokens: int, req_to_token: torch.Tensor,
        attention: PagedKernel, trace_dir: Path | None, usual_new_tokens: int, cost: CostModel,
        monitor: StepMonitor, shadow: ShadowCheck | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.rank, self.req_to_token, self.trace_dir = plan, rank, req_to_token, trace_dir
        self._monitor = monitor
        self._shadow = shadow or ShadowCheck(plan, rank, 0, lambda value: [value])
        self._dealt = DealtCounts(plan.rule.query_block)
        model, device = plan.model, attention.device
        keep_pages = plan.budget_table(max_tokens).pages

        def planner(order: np.ndarray, num_threads: int) -> StepPlanner:
            return planner_of(
                plan, keep_pages, order, plan.tp_size, rank=rank, num_ctas=attention.num_ctas, cost=cost,
                num_threads=num_threads,
            )  # fmt: skip

        placed = planner(plan.physical_to_logical, planning_threads(plan.tp_size))
        # What stock sharding would make of the same step; predictions only.
        self._contiguous = planner(plan.own_order, 1) if plan.permutes else None
        self._local_heads = plan.local_qo_heads(rank)
        self._step: PagedStep | None = None
        self._trace: StepTrace | None = None
        self._lens: tuple[list[int], list[int]] = ([], [])
        self._counted = True
        self.prefill = PagedPrefill(
            placed, attention, plan.rule,
            num_list_heads=plan.num_slots * model.group_size, group_size=model.group_size, device=device,
            usual_requests=64, usual_new_tokens=usual_new_tokens,
            copied=plan.copied_qo_heads(rank) if plan.replicas else None,
        )  # fmt: skip

    def begin(self, batch: Any) -> Route | None:
        """Plan an extend batch; None: the base backend runs it."""
        self._step = self._trace = None
        start = time.perf_counter_ns()
        parts = parts_of(batch, self.plan.rule)
        step = self._plan(batch, parts)
        speeds = self._monitor.begin_step(parts.prefix, parts.new, None if step is None else step.plan)
        if speeds is not None:
            for planner in filter(None, (self.prefill.planner, self._contiguous)):
                planner.set_rank_speeds(speeds)
        self._shadow.begin_step(step is not None)
        self._dealt.collect()
        STEP_COUNTERS.add_plan_ns(time.perf_counter_ns() - start)
        self._lens, self._counted = (parts.prefix, parts.new), False
        if step is None:
            self._count(None)
            return None
        self._step = step
        if self.trace_dir is not None:
            rids = [batch.rids[request] for request in parts.request]
            self._trace = StepTrace(self.trace_dir, self.rank, STEP_COUNTERS.sparse_steps, rids)
        if step.dense_rows is None:
            return Route()
        return Route(_dense_part(batch, parts, step))

    def _plan(self, batch: Any, parts: Parts) -> PagedStep | None:
        if min(parts.new) == 0 or all(parts.stock):  # SGLang can leave a chunk without a token in a mixed batch
            return None
        indices, seq_lens = batch.req_pool_indices, batch.seq_lens
        if len(parts.request) > len(indices):
            requests, seq_lens = upload([parts.request, parts.ends], indices.device)
            indices = indices[requests]
        return self.prefill.begin_step(parts.prefix, parts.new, self.req_to_token, indices, seq_lens, stock=parts.stock)

    def run(
        self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, layer: int, sm_scale: float,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Attention of the sparse requests into their rows of ``out``, ``[num_rows, local_qo_heads, head_dim]``."""
        assert self._step is not None
        observe = None
        if self._trace is not None:

            def observe(pages: torch.Tensor, scores: torch.Tensor) -> None:
                self._add_to_trace(layer, pages, scores)

        if self._monitor.sampling:
            self._monitor.mark()
            pages = self.prefill.select(self._step, layer, q, k_pool, sm_scale, observe)
            self._monitor.mark()
            self.prefill.attend(self._step, layer, pages, q, k_pool, v_pool, sm_scale, out)
            self._monitor.mark()
        else:
            self.prefill.run(self._step, layer, q, k_pool, v_pool, sm_scale, out, observe)
        if not self._counted:  # once the GPU has work to do meanwhile
            self._count(self._step)
        if self._step.dealt is not None:
            self._dealt.add(self._step, layer)
        if self._shadow.active:
            self._check(self._step, q, k_pool, v_pool, layer, sm_scale, out)

    def _check(
        self, step: PagedStep, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, layer: int,
        sm_scale: float, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """The shadow check of one layer."""
        blocks = step.query_blocks()
        chosen = self._shadow.choose(layer, [QueryBlock(*block) for block in blocks])
        if chosen is not None:
            request, offset, first_row, end_row = blocks[chosen.block]
            rows, slots = slice(offset, offset + end_row - first_row), step.slots(request, end_row)
            kept = kept_pages(
                step.page_indices, step.list_indptr(layer), chosen.block, len(blocks), pages_of_tokens(slots),
                -(-k_pool.shape[0] // PAGE_SIZE),
            )  # fmt: skip
            self._shadow.add(layer, q[rows], k_pool[slots], v_pool[slots], out[rows], first_row, chosen, kept, sm_scale)
        self._shadow.end_layer(layer)

    def _count(self, step: PagedStep | None) -> None:
        """Count in (query row, key page) pairs of this rank, where a block counts as whole.

        Dense layers compute copies twice, but every head counts once.
        """
        self._counted = True
        prefix, new = self._lens
        model, rows = self.plan.model, self.plan.rule.query_block
        per_layer = model.num_qo_heads // self.plan.tp_size * model.num_layers * rows
        visible = [visible_pages(p, n, rows) for p, n in zip(prefix, new, strict=True)]
        causal = sum(visible) * per_layer
        if step is None:
            idle = np.zeros((model.num_layers, self.plan.tp_size), dtype=np.int64)
            STEP_COUNTERS.add_step(dense=True, computed=causal, causal=causal, placed=idle, contiguous=idle)
            return
        sparse = step.plan.sparse.astype(bool)
        dense = sum(pages for pages, ours in zip(visible, sparse.tolist(), strict=True) if not ours)
        placed = contiguous = step.plan.rank_makespan_ns
        if self._contiguous is not None:
            ours = np.array(prefix, dtype=np.int64)[sparse], np.array(new, dtype=np.int64)[sparse]
            contiguous = self._contiguous.predict(*ours, "sparse").rank_makespan_ns
        computed = int(step.plan.list_pages.sum()) * rows + dense * per_layer
        STEP_COUNTERS.add_step(dense=False, computed=computed, causal=causal, placed=placed, contiguous=contiguous)

    def _add_to_trace(self, layer: int, pages: torch.Tensor, scores: torch.Tensor) -> None:
        """Slow, and waits for the GPU: traces are for debugging."""
        assert self._step is not None
        assert self._trace is not None
        plan = self._step.plan
        indptr = self._step.list_indptr(layer).tolist()
        sparse = plan.sparse.tolist()
        blocks = [
            block
            for block in cut_query_blocks(*self._lens, self.plan.rule.query_block)
            if sparse[block.request]
        ]  # fmt: skip
        heads = self._local_heads[layer].tolist()
        for index, block in enumerate(blocks):
            at = [head * plan.num_blocks + index for head in range(len(heads))]
            # Lists that another rank's copy has are empty here.
            ours = [local for local, place in enumerate(at) if indptr[place] < indptr[place + 1]]
            kept = [pages[indptr[at[local]] : indptr[at[local] + 1]] for local in ours]
            shown = scores[:, index, : num_pages(block.end_row)][ours]
            self._trace.add(layer, [heads[local] for local in ours], block, kept, shown)
        if layer == self.plan.model.num_layers - 1:
            self._trace.write()


def _dense_part(batch: Any, parts: Parts, step: PagedStep) -> DensePart:
    """What of the step belongs to the base backend; one stretch of rows needs no copies."""
    dense = np.flatnonzero(step.plan.sparse == 0)
    ends = np.cumsum(parts.new)
    first, end = int(ends[dense[0]]) - parts.new[dense[0]], int(ends[dense[-1]])
    assert step.dense_rows is not None
    rows = slice(first, end) if dense[-1] - dense[0] + 1 == len(dense) else step.dense_rows.long()
    return DensePart(sub_batch(batch, parts.chosen(dense.tolist())), rows)
