# SPDX-License-Identifier: Apache-2.0
"""Prefill steps in plain torch: on machines without a GPU, and for types that FlashInfer has no kernel for."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.sglang.batches import Route
from shplb.sglang.metadata import StepBudgets
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.tokens import token_slots
from shplb.sglang.torch_prefill import LayerShare, TorchPrefill
from shplb.sglang.trace import StepTrace


class TorchEngine:
    """Sparse wherever budgets say so, whatever it costs: this path is for right answers, not for speed."""

    def __init__(self, plan: ServingPlan, rank: int, max_tokens: int, req_to_token: torch.Tensor,
                 trace_dir: Path | None, forced: bool = False) -> None:  # fmt: skip
        """forced: steps run here even where budgets keep every page."""
        self.plan, self.rank, self.req_to_token, self.trace_dir = plan, rank, req_to_token, trace_dir
        self.forced = forced
        self.table = plan.budget_table(max_tokens)
        self.prefill = TorchPrefill(plan.rule, plan.local_qo_heads(rank).tolist())
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
        step = StepBudgets(self.table, list(batch.extend_prefix_lens_cpu), list(batch.extend_seq_lens_cpu))
        loads = step.group_loads(self.plan)
        dense = step.dense and not (self.forced and max(batch.extend_seq_lens_cpu) > 1)
        STEP_COUNTERS.add_step(
            dense=dense,
            computed=int(loads.sum()),
            causal=step.causal_row_pages(self.plan),
            placed=self.plan.rank_loads(loads),
            contiguous=self.plan.rank_loads(loads, contiguous=True),
        )
        if dense:
            return None
        self._step, self._slots, self._trace = step, token_slots(self.req_to_token, batch), None
        if self._planner is not None:
            prefix, new = np.array(batch.extend_prefix_lens_cpu), np.array(batch.extend_seq_lens_cpu)
            some = new > 0  # SGLang can leave a chunk without a token in a mixed batch
            self._owned = self._planner.predict(prefix[some], new[some], "sparse").owned_blocks
        if self.trace_dir is not None:
            self._trace = StepTrace(self.trace_dir, self.rank, STEP_COUNTERS.sparse_steps, list(batch.rids))
        return Route()

    def run(
        self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, layer: int, sm_scale: float,
        out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Attention of all rows into ``out``, ``[num_rows, local_qo_heads, head_dim]``."""
        assert self._step is not None
        share = None
        if self._owned is not None:
            share = LayerShare(self._copied[layer].tolist(), self._owned[layer].tolist())
        out.copy_(self.prefill.run(q, k_pool, v_pool, self._slots, self._step, layer, sm_scale, self._trace, share))
        if self._trace is not None and layer == self.plan.model.num_layers - 1:
            self._trace.write()
