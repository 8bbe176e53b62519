# SPDX-License-Identifier: Apache-2.0
"""The attention backend: SGLang's own one, with prefill of long prompts done by head-adaptive sparse attention.

The wrapping class has the base's class as its base, so every attribute, method and isinstance check that SGLang relies
on stays; decode, CUDA graphs and dense steps are the base backend's own code.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from shplb.sglang.active_plan import load_plan
from shplb.sglang.metadata import StepBudgets
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.plugin import require_active
from shplb.sglang.refusal import StartRefusedError
from shplb.sglang.sparse_prefill import SparsePrefill
from shplb.sglang.tokens import token_slots, write_kv
from shplb.sglang.trace import StepTrace

logger = logging.getLogger(__name__)

_KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def wrap_attn_backend(runner: Any, backend: Any) -> Any:
    """Turn a freshly built base backend into the S-HPLB one; called by the patched backend factory on every rank.

    Raises:
        StartRefusedError: the plugin hook is missing, the KV cache is quantised, or ranks hold different plans.
    """
    if runner.is_draft_worker:
        return backend
    require_active()
    if runner.kv_cache_dtype not in _KV_DTYPES:  # "auto" follows the checkpoint, so flags alone do not tell
        raise StartRefusedError(f"a KV cache of {runner.kv_cache_dtype} is not supported; use --kv-cache-dtype bf16.")
    if runner.server_args.shplb_profile is not None:
        from shplb.sglang.profiling import ProfilingMixin

        mixin: type = ProfilingMixin
    else:
        mixin = SparsePrefillMixin
    base = type(backend)
    wrapping: Any = type(f"Shplb{base.__name__}", (mixin, base), {})
    wrapped = wrapping.__new__(wrapping)
    # One shared attribute dictionary: helpers that keep a reference to the base object see the same state.
    wrapped.__dict__ = backend.__dict__
    wrapped.start_shplb(runner)
    return wrapped


class SparsePrefillMixin:
    """Overrides prefill of a base AttentionBackend."""

    def start_shplb(self, runner: Any) -> None:
        args = runner.server_args
        self.shplb_plan = load_plan(args.shplb_plan)
        check_same_plan(self.shplb_plan.hash, runner)
        rank = runner.tp_rank
        self.shplb_table = self.shplb_plan.budget_table(runner.model_config.context_len)
        self.shplb_prefill = SparsePrefill(self.shplb_plan.rule, self.shplb_plan.local_qo_heads(rank).tolist())
        self.shplb_last_layer = self.shplb_plan.model.num_layers - 1
        self.shplb_trace_dir = Path(args.shplb_trace) if args.shplb_trace else None
        self.shplb_step: StepBudgets | None = None
        self.shplb_trace: StepTrace | None = None
        self.shplb_rank = rank
        STEP_COUNTERS.start(
            self.shplb_plan.tp_size,
            plan=args.shplb_plan,
            plan_hash=self.shplb_plan.hash,
            page_size=runner.page_size if hasattr(runner, "page_size") else args.page_size,
        )
        logger.info(
            "S-HPLB: prefill at density %.3g (%s budgets), plan %s",
            self.shplb_plan.density, self.shplb_plan.objective, self.shplb_plan.hash[:12],
        )  # fmt: skip

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)  # type: ignore[misc]
        self.shplb_step = self.shplb_trace = None
        if not forward_batch.forward_mode.is_extend_without_speculative() or not forward_batch.extend_seq_lens_cpu:
            return
        step = StepBudgets(
            self.shplb_table, list(forward_batch.extend_prefix_lens_cpu), list(forward_batch.extend_seq_lens_cpu)
        )
        self._count(step)
        if step.dense:
            return
        self.shplb_step = step
        if self.shplb_trace_dir is not None:
            rids = list(forward_batch.rids or map(str, range(forward_batch.batch_size)))
            self.shplb_trace = StepTrace(self.shplb_trace_dir, self.shplb_rank, STEP_COUNTERS.sparse_steps, rids)

    def _count(self, step: StepBudgets) -> None:
        plan = self.shplb_plan
        loads = step.group_loads(plan)
        STEP_COUNTERS.add_step(
            dense=step.dense,
            computed=int(loads.sum()),
            causal=step.causal_row_pages(plan),
            placed=plan.rank_loads(loads),
            contiguous=plan.rank_loads(loads, contiguous=True),
        )

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        step = self.shplb_step
        if step is None or layer.is_cross_attention:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)  # type: ignore[misc]
        if save_kv_cache and k is not None:
            write_kv(self.token_to_kv_pool, layer, forward_batch.out_cache_loc, k, v)  # type: ignore[attr-defined]
        pool = self.token_to_kv_pool  # type: ignore[attr-defined]
        out = self.shplb_prefill.run(
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            pool.get_key_buffer(layer.layer_id),
            pool.get_value_buffer(layer.layer_id),
            token_slots(self.req_to_token_pool.req_to_token, forward_batch),  # type: ignore[attr-defined]
            step,
            layer.layer_id,
            layer.scaling,
            self.shplb_trace,
        )
        if self.shplb_trace is not None and layer.layer_id == self.shplb_last_layer:
            self.shplb_trace.write()
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)


def check_same_plan(plan_hash: str, runner: Any) -> None:
    """All ranks must have read the same plan, or they would place heads differently; StartRefusedError if not."""
    if runner.tp_size == 1:
        return
    from sglang.srt.distributed import get_tp_group

    hashes: list[str | None] = [None] * runner.tp_size
    torch.distributed.all_gather_object(hashes, plan_hash, group=get_tp_group().cpu_group)
    if len(set(hashes)) > 1:
        raise StartRefusedError(f"ranks read different plans ({hashes}); give every node the same --shplb-plan file.")
