# SPDX-License-Identifier: Apache-2.0
"""The attention backend: SGLang's own one, with prefill of long prompts done by head-adaptive sparse attention.

The wrapping class has the base's class as its base, so every attribute, method and isinstance check that SGLang relies
on stays; decode, CUDA graphs and dense steps are the base backend's own code.
"""

import functools
import logging
from pathlib import Path
from typing import Any

import torch

from shplb.kernels.choice import PagedKernel
from shplb.kernels.flashinfer_sm90 import DTYPES, KernelUnavailableError
from shplb.kernels.self_check import checked_kernel
from shplb.plan import ServingPlan
from shplb.policies import DEFAULT
from shplb.rank_speeds import RankSpeeds
from shplb.sglang.active_plan import load_plan
from shplb.sglang.batches import Route, is_prefill
from shplb.sglang.environment import SPARSE_AT_ANY_PRICE, Environment
from shplb.sglang.gpu_rates import served_cost
from shplb.sglang.metrics import STEP_COUNTERS
from shplb.sglang.paged_engine import PagedEngine
from shplb.sglang.plugin import require_active
from shplb.sglang.ranks import check_same_plan, gather
from shplb.sglang.refusal import StartRefusedError
from shplb.sglang.shadow_check import ShadowCheck
from shplb.sglang.step_monitor import StepMonitor
from shplb.sglang.tokens import write_kv
from shplb.sglang.torch_engine import TorchEngine

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
        environment = Environment.read()
        self.shplb_plan = environment.apply(load_plan(args.shplb_plan))
        check_same_plan(self.shplb_plan.hash, runner)
        self.shplb_engine = make_engine(self.shplb_plan, runner)
        self.shplb_route: Route | None = None
        STEP_COUNTERS.start(
            self.shplb_plan.tp_size,
            export=args.enable_metrics,
            rank=runner.tp_rank,
            labels={"model_name": args.served_model_name, **(args.extra_metric_labels or {})},
            judged=environment.promises,
            plan=args.shplb_plan,
            plan_hash=self.shplb_plan.hash,
            page_size=runner.page_size if hasattr(runner, "page_size") else args.page_size,
            engine=type(self.shplb_engine).__name__,
            path=environment.path,
            policy=environment.policy or DEFAULT,
            feedback=environment.feedback if isinstance(self.shplb_engine, PagedEngine) else "off",
        )
        if environment.policy not in ("", DEFAULT):
            logger.warning(
                "S-HPLB: policy %s is experimental, there to be compared with; budgets are the plan's (%s)",
                environment.policy, self.shplb_plan.objective,
            )  # fmt: skip
        logger.info(
            "S-HPLB: prefill at density %.3g (%s budgets), plan %s",
            self.shplb_plan.density, self.shplb_plan.objective, self.shplb_plan.hash[:12],
        )  # fmt: skip

    def init_forward_metadata(self, forward_batch: Any) -> None:
        self.shplb_route = None
        if is_prefill(forward_batch):
            self.shplb_route = self.shplb_engine.begin(forward_batch)
        if self.shplb_route is None:
            super().init_forward_metadata(forward_batch)  # type: ignore[misc]
        elif self.shplb_route.dense is not None:  # else the base's own plan would only cost time
            super().init_forward_metadata(self.shplb_route.dense.batch)  # type: ignore[misc]

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
        route = self.shplb_route
        if route is None or layer.is_cross_attention:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)  # type: ignore[misc]
        pool = self.token_to_kv_pool  # type: ignore[attr-defined]
        if save_kv_cache and k is not None:
            write_kv(pool, layer, forward_batch.out_cache_loc, k, v)
        q = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        self.shplb_engine.run(q, keys, values, layer.layer_id, layer.scaling, out)
        if route.dense is not None:
            rows = route.dense.rows
            part = super().forward_extend(  # type: ignore[misc]
                q[rows].flatten(1), k[rows], v[rows], layer, route.dense.batch, False, **kwargs
            )
            out[rows] = part.view(-1, *out.shape[1:])
        return out.view(-1, layer.tp_q_head_num * layer.v_head_dim)


def make_engine(plan: ServingPlan, runner: Any) -> PagedEngine | TorchEngine:
    """The engine for this rank's device; StartRefusedError when its kernels can't be used."""
    args, max_tokens = runner.server_args, runner.model_config.context_len
    environment = Environment.read()
    trace_dir = Path(args.shplb_trace) if args.shplb_trace else None
    req_to_token = runner.req_to_token_pool.req_to_token
    device = req_to_token.device
    kernel = find_kernel(plan, runner, device, environment) if device.type == "cuda" else None
    forced = environment.path == "sparse"
    ask = functools.partial(gather, runner)
    shadow = ShadowCheck(plan, runner.tp_rank, environment.shadow_every, ask)
    if kernel is None:
        if environment.sample_every and runner.tp_rank == 0:
            logger.warning("S-HPLB: no times are sampled, and no feedback drawn from them, since layers run in torch")
        return TorchEngine(plan, runner.tp_rank, max_tokens, req_to_token, trace_dir, forced, shadow)
    chunk = args.chunked_prefill_size if args.chunked_prefill_size > 0 else max_tokens
    speeds = RankSpeeds(plan.tp_size) if environment.feedback == "on" else None
    if speeds is not None and not plan.replicas and runner.tp_rank == 0:
        logger.warning("S-HPLB: feedback corrects predicted times only, since the plan has no replicas to divide anew")
    monitor = StepMonitor(plan.model.num_layers, ask, environment.sample_every, speeds)
    cost = SPARSE_AT_ANY_PRICE if forced else served_cost(plan, runner, kernel)
    return PagedEngine(plan, runner.tp_rank, max_tokens, req_to_token, kernel, trace_dir, chunk, cost, monitor, shadow)


def find_kernel(plan: ServingPlan, runner: Any, device: torch.device, environment: Environment) -> PagedKernel | None:
    """FlashInfer's kernel for this GPU, proven; None, with a warning, where only plain torch is left."""
    if runner.dtype != runner.kv_cache_dtype or runner.dtype not in DTYPES:
        logger.warning(
            "S-HPLB: no FlashInfer kernel for %s over a %s KV cache; sparse layers run in plain torch, which is slow",
            runner.dtype, runner.kv_cache_dtype,
        )  # fmt: skip
        return None
    try:
        return checked_kernel(runner.dtype, plan, runner.model_config.context_len, device, environment.kernel)
    except KernelUnavailableError as error:
        raise StartRefusedError(str(error)) from None
