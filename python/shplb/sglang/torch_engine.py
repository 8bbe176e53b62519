# SPDX-License-Identifier: Apache-2.0
"""Prefill steps in plain torch: on machines without a GPU, and for types that FlashInfer has no kernel for."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.sglang.batches import Route
from shplb.sglang.metadata import QueryBlock, StepBudgets
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.parts import parts_of
from shplb.sglang.shadow_check import ShadowCheck
from shplb.sglang.tokens import token_slots
from shplb.sglang.torch_prefill import LayerShare, TorchPrefill
from shplb.sglang.trace import StepTrace
from shplb.sparsity import num_pages


class TorchEngine:
    """Sparse wherever budgets say so, whatever it costs: this path is for right answers, not for speed."""

    def __init__(self, plan: ServingPlan, rank: int, max_tokens: int, req_to_token: torch.Tensor,
                 trace_dir: Path | None, forced: bool = False, shadow: ShadowCheck | None = None) -> None:  # fmt: skip
        """forced: steps run here even where budgets keep every page."""
        self.plan, self.rank, self.req_to_token, self.trace_dir = plan, rank, req_to_token, trace_dir
        self.forced = forced
        self.table = plan.budget_table(max_tokens)
        self._heads = plan.local_qo_heads(rank)
        self.prefill = TorchPrefill(plan.rule, self._heads.tolist())
        self._shadow = shadow or ShadowCheck(plan, rank, 0, lambda value: [value])
        # With replicas: which copy computes what.
        self._planner = None
        if plan.replicas:
            order = plan.physical_to_logical
            self._planner = planner_of(plan, self.table.pages, order, plan.tp_size, rank=rank)
        self._copied = plan.copied_qo_heads(rank)
        self._owned: np.ndarray | None = None
        self._step: StepBudgets | None = None
        self._slots: list[torch.Tensor] = []
        self._trace: StepTrace | None = None

    def begin(self, batch: Any) -> Route | None:
        """Plan an extend batch; None: the base backend runs it."""
        parts = parts_of(batch, self.plan.rule)
        step = StepBudgets(self.table, parts.prefix, parts.new, parts.stock)
        loads = step.group_loads(self.plan)
        dense = step.dense and not (self.forced and max(batch.extend_seq_lens_cpu) > 1)
        STEP_COUNTERS.add_step(
            dense=dense,
            computed=int(loads.sum()),
            causal=step.causal_row_pages(self.plan),
            placed=self.plan.rank_loads(loads),
            contiguous=self.plan.rank_loads(loads, contiguous=True),
        )
        self._shadow.begin_step(not dense)
        if dense:
            return None
        rows = batch.req_pool_indices[torch.tensor(parts.request, device=batch.req_pool_indices.device)]
        self._step, self._slots, self._trace = step, token_slots(self.req_to_token, rows, parts.ends), None
        if self._planner is not None:
            prefix, new = np.array(parts.prefix), np.array(parts.new)
            some = new > 0  # SGLang can leave a chunk without a token in a mixed batch
            self._owned = self._planner.predict(prefix[some], new[some], "sparse").owned_blocks
        if self.trace_dir is not None:
            rids = [batch.rids[request] for request in parts.request]
            self._trace = StepTrace(self.trace_dir, self.rank, STEP_COUNTERS.sparse_steps, rids)
        return Route()

    def run(
        self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, layer: int, sm_scale: float,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Attention of all rows into ``out``, ``[num_rows, local_qo_heads, head_dim]``."""
        assert self._step is not None
        heads, lists = self._heads[layer].tolist(), {}

        def observe(block: QueryBlock, pages: list[torch.Tensor], scores: torch.Tensor) -> None:
            lists[block] = pages
            if self._trace is not None:
                ours = [head for head, kept in enumerate(pages) if len(kept)]  # not another copy's
                self._trace.add(layer, [heads[i] for i in ours], block, [pages[i] for i in ours], scores[ours])

        share = None
        if self._owned is not None:
            share = LayerShare(self._copied[layer].tolist(), self._owned[layer].tolist())
        out.copy_(self.prefill.run(q, k_pool, v_pool, self._slots, self._step, layer, sm_scale, observe, share))
        if self.plan.rule.choice == "top_p":
            self._count(layer, lists)
        if self._shadow.active:
            self._check(q, k_pool, v_pool, layer, sm_scale, out, lists)
        if self._trace is not None and layer == self.plan.model.num_layers - 1:
            self._trace.write()

    def _count(self, layer: int, lists: dict[QueryBlock, list[torch.Tensor]]) -> None:
        """Correct the counters for lists that are not as long as planned; this rank's part of all."""
        assert self._step is not None
        real = [
            local for local, head in enumerate(self._heads[layer]) if head not in self.plan.model.inert_qo_heads
        ]  # fmt: skip
        planned = self._step.keep[layer, self._heads[layer]][real].sum(axis=0)
        kept = [sum(len(lists[block][local]) for local in real) for block in self._step.blocks]
        STEP_COUNTERS.add_unplanned(int(((kept - planned) * self._step.rows).sum()) * self.plan.tp_size)

    def _check(
        self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, layer: int, sm_scale: float,
        out: torch.Tensor, lists: dict[QueryBlock, list[torch.Tensor]],
    ) -> None:  # fmt: skip
        assert self._step is not None
        sparse = [block for block in self._step.blocks if not self._step.whole[block.request]]
        chosen = self._shadow.choose(layer, sparse)
        if chosen is not None:
            block = sparse[chosen.block]
            rows = slice(block.offset, block.offset + block.end_row - block.first_row)
            slots = self._slots[block.request][: block.end_row]
            kept = torch.zeros((len(lists[block]), num_pages(block.end_row)), dtype=torch.bool)
            for head, pages in enumerate(lists[block]):
                kept[head, pages] = True
            kept = kept.to(q.device)
            self._shadow.add(
                layer, q[rows], k_pool[slots], v_pool[slots], out[rows], block.first_row, chosen, kept, sm_scale
            )
        self._shadow.end_layer(layer)
