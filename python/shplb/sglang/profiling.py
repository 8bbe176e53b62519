# SPDX-License-Identifier: Apache-2.0
"""Profile recording inside SGLang: attention stays dense, and sampled query rows are measured on the side."""

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.kernels.block_measurement import BlockRows
from shplb.kernels.chunk_curves import ChunkCurves, chunk_curves
from shplb.kernels.curves import output_gram
from shplb.recording import ProfileRequest, exact_name
from shplb.row_sampling import sampled_rows
from shplb.sglang.metadata import QueryBlock, cut_query_blocks
from shplb.sglang.refusal import StartRefusedError
from shplb.sglang.running_sums import RunningSums
from shplb.sglang.tokens import token_slots

logger = logging.getLogger(__name__)


class ProfilingMixin:
    """Overrides prefill of a base AttentionBackend: dense output, curves recorded per request id."""

    def start_shplb(self, runner: Any) -> None:
        folder = Path(runner.server_args.shplb_profile)
        request = ProfileRequest.load(folder)
        self.shplb_recorder = CurveRecorder(request, folder, runner.tp_rank, output_grams(runner))
        self.shplb_blocks: list[QueryBlock] = []
        self.shplb_slots: list[torch.Tensor] = []
        watch_residual(runner.model.model.layers, self.shplb_recorder)
        logger.info("S-HPLB: recording head profiles into %s", folder)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)  # type: ignore[misc]
        self.shplb_blocks = []
        # Graph capture runs dummy batches, which have no request ids.
        if forward_batch.forward_mode.is_extend_without_speculative() and forward_batch.rids:
            prefix, new = list(forward_batch.extend_prefix_lens_cpu), list(forward_batch.extend_seq_lens_cpu)
            self.shplb_blocks = cut_query_blocks(prefix, new, self.shplb_recorder.request.rule.query_block)
            table = self.req_to_token_pool.req_to_token  # type: ignore[attr-defined]
            ends = [cached + fresh for cached, fresh in zip(prefix, new, strict=True)]
            # Once per step: reading a request's place waits for the GPU.
            self.shplb_slots = token_slots(table, forward_batch.req_pool_indices, ends)

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
        out = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)  # type: ignore[misc]
        if self.shplb_blocks:
            pool = self.token_to_kv_pool  # type: ignore[attr-defined]
            self.shplb_recorder.record(
                layer.layer_id,
                list(forward_batch.rids),
                q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
                pool.get_key_buffer(layer.layer_id),
                pool.get_value_buffer(layer.layer_id),
                self.shplb_slots,
                self.shplb_blocks,
                layer.scaling,
            )
        return out


class CurveRecorder:
    """Measures the blocks of profiled requests and writes one file per document and rank at its end."""

    def __init__(self, request: ProfileRequest, folder: Path, rank: int, grams: torch.Tensor) -> None:
        """grams: float32 [num_layers, local_qo_heads, head_dim, head_dim]."""
        self.request, self.folder, self.rank, self.grams = request, folder, rank, grams
        self.document = ""
        self.sums: RunningSums | None = None
        self.exact: RunningSums | None = None
        self.residual: tuple[torch.Tensor, int] | None = None  # of the layer under way: squared norms, rows
        self._chunk: tuple[torch.Tensor, ChunkCurves] | None = None  # the step's slots, and what is made for them

    def record(
        self,
        layer: int,
        rids: list[str],
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        slots: list[torch.Tensor],
        blocks: list[QueryBlock],
        sm_scale: float,
    ) -> None:
        for index, rid in enumerate(rids):
            if not self.request.owns(rid):
                continue
            mine = [block for block in blocks if block.request == index]
            self.measure(layer, rid, q, k_pool, v_pool, slots[index], mine, sm_scale)
            if self.residual is not None and self.sums is not None and len(rids) == 1:
                self.sums.add_residual(layer, *self.residual)
            # Curves of half a document are of no use, and a file takes as long as a layer.
            if layer == len(self.grams) - 1 and mine[-1].end_row >= self.request.lengths[-1]:
                self._save()

    def measure(
        self,
        layer: int,
        document: str,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        slots: torch.Tensor,
        blocks: list[QueryBlock],
        sm_scale: float,
    ) -> None:
        """Add one layer's blocks of a document; q: [num_tokens, local_qo_heads, head_dim] as ``blocks`` index it;
        k_pool, v_pool: [pool_tokens, local_kv_heads, head_dim]; slots: int64 [seq_len], where its tokens so far are,
        one tensor in all layers of a step.
        """
        if document != self.document:
            shape = (len(self.grams), q.shape[1], len(self.request.lengths), q.device)
            self.document, self.sums = document, RunningSums(*shape)
            self.exact = RunningSums(*shape) if document == self.request.exact_document else None
        blocks = [block for block in blocks if self.request.bucket(block.end_row) is not None]
        if blocks:
            curves = self._curves_of(blocks, slots, q, k_pool)
            self._add(layer, blocks, curves, q, k_pool, v_pool, sm_scale)

    def _curves_of(
        self, blocks: list[QueryBlock], slots: torch.Tensor, q: torch.Tensor, k_pool: torch.Tensor
    ) -> ChunkCurves:
        """Tables of the chunk, made at its first layer."""
        if self._chunk is None or self._chunk[0] is not slots:
            rows = [BlockRows(block.offset, block.first_row, block.end_row) for block in blocks]
            self._chunk = slots, chunk_curves(rows, slots, self.request.rule, q, k_pool)
        return self._chunk[1]

    def _add(
        self, layer: int, blocks: list[QueryBlock], curves: ChunkCurves, q: torch.Tensor, k_pool: torch.Tensor,
        v_pool: torch.Tensor, sm_scale: float,
    ) -> None:  # fmt: skip
        request, gram = self.request, self.grams[layer].to(q.device)
        every, seed, document = request.row_sampling, request.seed, self.document
        chosen = [
            sampled_rows(block.first_row, block.end_row, every=every, seed=seed, document=document, layer=layer)
            for block in blocks
        ]
        buckets = [bucket for block in blocks if (bucket := request.bucket(block.end_row)) is not None]
        measure = curves.layer(q, k_pool, v_pool, sm_scale)
        found = measure(chosen, gram)
        assert self.sums is not None
        self.sums.add(layer, buckets, found, [len(rows) for rows in chosen])
        if self.exact is None or not request.is_exact(layer):
            return
        whole = [np.arange(block.first_row, block.end_row) for block in blocks]
        others = [np.setdiff1d(rows, some) for rows, some in zip(whole, chosen, strict=True)]
        self.exact.add(layer, buckets, found + measure(others, gram), [len(rows) for rows in whole])

    def _save(self) -> None:
        for sums, name in ((self.sums, self.document), (self.exact, exact_name(self.document))):
            if sums is not None:
                sums.on_host().save(self.folder, name, self.rank)


def watch_residual(layers: Any, recorder: CurveRecorder) -> None:
    """Hand the recorder, at every decoder layer, the squared norm of the stream that the layer adds its output to.

    SGLang keeps that stream in two parts, the output of the layer before and the rest.
    """

    def before(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        stream, rest = given["hidden_states"].float(), given.get("residual")
        stream = stream if rest is None else stream + rest  # in float32, without a copy of the rest
        recorder.residual = torch.linalg.vector_norm(stream).square(), len(stream)

    for layer in layers:
        layer.register_forward_pre_hook(before, with_kwargs=True)


def output_grams(runner: Any) -> torch.Tensor:
    """``output_gram`` of every layer's local heads: float32 [num_layers, local_qo_heads, head_dim, head_dim]."""
    grams = []
    head_dim = runner.model_config.head_dim
    for index, layer in enumerate(runner.model.model.layers):
        weight = layer.self_attn.o_proj.weight
        if getattr(layer.self_attn.o_proj, "use_intel_amx_backend", False):
            raise StartRefusedError("o_proj is repacked for AMX here; profile in float32, or on a GPU.")
        if not torch.is_floating_point(weight) or weight.dim() != 2 or weight.shape[1] % head_dim:
            raise StartRefusedError(f"o_proj of layer {index} is not a float matrix; profile unquantised weights.")
        grams.append(output_gram(weight, head_dim))
    return torch.stack(grams)
