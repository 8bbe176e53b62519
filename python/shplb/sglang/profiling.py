# SPDX-License-Identifier: Apache-2.0
"""Profile recording inside SGLang: attention stays dense, and sampled query rows are measured on the side."""

import inspect
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.kernels.block_measurement import BlockMeasurement
from shplb.kernels.curves import output_gram
from shplb.kernels.scores import key_vectors
from shplb.recording import CurveSums, ProfileRequest, exact_name
from shplb.row_sampling import sampled_rows
from shplb.sglang.metadata import QueryBlock, cut_query_blocks
from shplb.sglang.refusal import StartRefusedError
from shplb.sglang.tokens import token_slots

logger = logging.getLogger(__name__)


class ProfilingMixin:
    """Overrides prefill of a base AttentionBackend: dense output, curves recorded per request id."""

    def start_shplb(self, runner: Any) -> None:
        folder = Path(runner.server_args.shplb_profile)
        request = ProfileRequest.load(folder)
        self.shplb_recorder = CurveRecorder(request, folder, runner.tp_rank, output_grams(runner))
        self.shplb_blocks: list[QueryBlock] = []
        watch_residual(runner.model.model.layers, self.shplb_recorder)
        logger.info("S-HPLB: recording head profiles into %s", folder)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        super().init_forward_metadata(forward_batch)  # type: ignore[misc]
        self.shplb_blocks = []
        # Graph capture runs dummy batches, which have no request ids.
        if forward_batch.forward_mode.is_extend_without_speculative() and forward_batch.rids:
            self.shplb_blocks = cut_query_blocks(
                list(forward_batch.extend_prefix_lens_cpu),
                list(forward_batch.extend_seq_lens_cpu),
                self.shplb_recorder.request.rule.query_block,
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
        out = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)  # type: ignore[misc]
        if self.shplb_blocks:
            pool = self.token_to_kv_pool  # type: ignore[attr-defined]
            self.shplb_recorder.record(
                layer.layer_id,
                list(forward_batch.rids),
                q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
                pool.get_key_buffer(layer.layer_id),
                pool.get_value_buffer(layer.layer_id),
                token_slots(self.req_to_token_pool.req_to_token, forward_batch),  # type: ignore[attr-defined]
                self.shplb_blocks,
                layer.scaling,
            )
        return out


class CurveRecorder:
    """Measures the blocks of profiled requests and writes one file per document and rank after every chunk."""

    def __init__(self, request: ProfileRequest, folder: Path, rank: int, grams: torch.Tensor) -> None:
        """grams: float32 [num_layers, local_qo_heads, head_dim, head_dim]."""
        self.request, self.folder, self.rank, self.grams = request, folder, rank, grams
        self.document = ""
        self.sums: CurveSums | None = None
        self.exact: CurveSums | None = None
        self.residual: tuple[torch.Tensor, int] | None = None  # of the layer under way: squared norms, rows

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
            self.measure(layer, rid, q, k_pool[slots[index]], v_pool[slots[index]], mine, sm_scale)
            if self.residual is not None and self.sums is not None and len(rids) == 1:
                squares, rows = self.residual
                self.sums.residual[layer] += (squares.item(), rows)
            if layer == len(self.grams) - 1:
                self._save()

    def measure(
        self,
        layer: int,
        document: str,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        blocks: list[QueryBlock],
        sm_scale: float,
    ) -> None:
        """Add one layer's blocks of a document; q: [num_tokens, local_qo_heads, head_dim] as ``blocks`` index it; k, v:
        [seq_len, local_kv_heads, head_dim] of its tokens so far.
        """
        if document != self.document:
            shape = (len(self.grams), q.shape[1], len(self.request.lengths))
            self.document, self.sums = document, CurveSums.zeros(*shape)
            self.exact = CurveSums.zeros(*shape) if document == self.request.exact_document else None
        keys, values = k.float().transpose(0, 1), v.float().transpose(0, 1)
        pooled = key_vectors(k, self.request.rule)
        for block in blocks:
            bucket = self.request.bucket(block.end_row)
            if bucket is not None:
                rows = q[block.offset : block.offset + block.end_row - block.first_row]
                found = BlockMeasurement(rows, keys, values, pooled, block.first_row, sm_scale, self.request.rule)
                self._add(layer, bucket, block, found)

    def _add(self, layer: int, bucket: int, block: QueryBlock, found: BlockMeasurement) -> None:
        request, device, gram = self.request, found.q.device, self.grams[layer].to(found.q.device)
        chosen = sampled_rows(
            block.first_row,
            block.end_row,
            every=request.row_sampling,
            seed=request.seed,
            document=self.document,
            layer=layer,
        )
        recovery, error = (part.cpu().numpy() for part in found.curves(torch.from_numpy(chosen).to(device), gram))
        assert self.sums is not None
        self.sums.add(layer, bucket, recovery, error, len(chosen))
        if self.exact is None or not request.is_exact(layer):
            return
        others = np.setdiff1d(np.arange(block.first_row, block.end_row), chosen)
        rest = [part.cpu().numpy() for part in found.curves(torch.from_numpy(others).to(device), gram)]
        self.exact.add(layer, bucket, recovery + rest[0], error + rest[1], len(chosen) + len(others))

    def _save(self) -> None:
        if self.sums is not None:
            self.sums.save(self.folder, self.document, self.rank)
        if self.exact is not None:
            self.exact.save(self.folder, exact_name(self.document), self.rank)


def watch_residual(layers: Any, recorder: CurveRecorder) -> None:
    """Hand the recorder, at every decoder layer, the squared norm of the stream that the layer adds its output to.

    SGLang keeps that stream in two parts, the output of the layer before and the rest.
    """

    def before(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        stream, rest = given["hidden_states"].float(), given.get("residual")
        stream = stream if rest is None else stream + rest.float()
        recorder.residual = stream.square().sum(), len(stream)

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
