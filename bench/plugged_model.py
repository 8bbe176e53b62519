# SPDX-License-Identifier: Apache-2.0
"""The package's kernels as an attention function of transformers: head curves and sparse prefill without a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from shplb.kernels.curves import output_gram
from shplb.model import ModelShape, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.profile import DENSITIES, HeadProfile
from shplb.recording import ProfileRequest
from shplb.sglang.metadata import StepBudgets, cut_query_blocks
from shplb.sglang.parts import cut_parts
from shplb.sglang.profiling import CurveRecorder
from shplb.sglang.running_sums import RunningSums
from shplb.sglang.torch_prefill import TorchPrefill
from shplb.sparsity import SparsityRule, query_block_size


class PluggedModel:
    """A causal model whose prefill attention is dense, recorded, or sparse under a plan."""

    def __init__(self, model_dir: Path, tokens: int, rule: SparsityRule | None = None, device: str = "cpu") -> None:
        """rule: by default that of serving, on contexts above 256 tokens; device: where it runs, as torch names it."""
        AttentionInterface.register("shplb", self._attend)
        self.folder, self.tokens, self.device = model_dir, tokens, torch.device(device)
        self.shape = ModelShape.from_config(read_config(model_dir))
        self.rule = rule or SparsityRule(query_block_size(self.shape.head_dim), dense_below_tokens=256)
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="shplb")
        self.model = self.model.to(device).eval()
        self.request = ProfileRequest(documents=(), lengths=(tokens // 2, tokens), rule=self.rule)
        self.plan: ServingPlan | None = None
        self.sees: Callable[..., None] | None = None

    def nll(self, token_ids: list[int], plan: ServingPlan | None) -> np.ndarray:
        """NLL of every token but the first, under sparse attention if there is a plan."""
        logits, labels = self.logits(token_ids, plan)[:-1], torch.tensor(token_ids[1:])
        labels = labels.to(logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none").double().cpu().numpy()

    def logits(self, token_ids: list[int], plan: ServingPlan | None) -> torch.Tensor:
        """[tokens, vocabulary], under sparse attention if there is a plan."""
        self.plan = plan
        if plan is not None:
            self.parts = cut_parts([0], [len(token_ids)], [len(token_ids)], plan.rule)
            self.step = StepBudgets(plan.budget_table(self.tokens), self.parts.prefix, self.parts.new, self.parts.stock)
            self.prefill = TorchPrefill(plan.rule, [list(range(self.shape.num_qo_heads))] * self.shape.num_layers)
        with torch.inference_mode():
            logits = self.model(torch.tensor([token_ids], device=self.device)).logits[0]
        self.plan = None
        return logits

    def watch(self, token_ids: list[int], sees: Callable[..., None]) -> None:
        """A dense pass in which ``sees`` gets (attention module, layer, q, k, v, scaling) of every layer."""
        self.sees = sees
        self.logits(token_ids, None)
        self.sees = None

    def profile(self, documents: list[list[int]]) -> HeadProfile:
        """Head curves, measured as the server's profiling backend measures them."""
        found = []
        for index, token_ids in enumerate(documents):
            self.document = f"document{index:03d}"
            shape = (self.shape.num_layers, self.shape.num_qo_heads, len(self.request.lengths))
            self.sums = RunningSums(*shape, self.device)
            self.watch(token_ids, self._record)
            found.append(self.sums.on_host())
        rows = np.array([sums.rows[0] for sums in found])
        scale = 1.0 / rows[:, None, None, :, None]
        return HeadProfile(
            model=self.shape,
            fingerprint=fingerprint(self.folder),
            rule=self.rule,
            documents=tuple(f"document{index}" for index in range(len(documents))),
            documents_hash="",
            versions={},
            lengths=np.array(self.request.lengths, dtype=np.int64),
            densities=np.array(DENSITIES),
            rows=rows,
            error=(np.array([sums.error for sums in found]) * scale).astype(np.float32),
            recovery=np.clip((np.array([sums.recovery for sums in found]) * scale).astype(np.float32), 0, 1),
        )

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # [tokens, heads, head_dim]
        layer = module.layer_idx
        if self.plan is not None:
            slots = [torch.arange(end, device=q.device) for end in self.parts.ends]
            return self.prefill.run(q, k, v, slots, self.step, layer, scaling, None)[None], None
        if self.sees is not None:
            self.sees(module, layer, q, k, v, scaling)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None

    def _record(
        self, module: Any, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float
    ) -> None:
        grams = output_gram(module.o_proj.weight, self.shape.head_dim)[None].expand(self.shape.num_layers, -1, -1, -1)
        recorder = CurveRecorder(self.request, self.folder, 0, grams)
        recorder.document, recorder.sums = self.document, self.sums
        blocks = cut_query_blocks([0], [len(q)], self.rule.query_block)
        recorder.measure(layer, self.document, q, k, v, torch.arange(len(q), device=q.device), blocks, scaling)
