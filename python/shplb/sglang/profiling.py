# SPDX-License-Identifier: Apache-2.0
"""Profile recording inside SGLang: attention stays dense, and sampled query rows are measured on the side."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.kernels.curves import block_curves, page_partials
from shplb.kernels.selection import page_scores, pool_tokens, rank_pages
from shplb.profile import DENSITIES
from shplb.recording import CurveSums, ProfileRequest
from shplb.sglang.metadata import QueryBlock, cut_query_blocks
from shplb.sglang.refusal import StartRefusedError
from shplb.sglang.tokens import token_slots
from shplb.sparsity import SparsityRule, num_pages

logger = logging.getLogger(__name__)


class ProfilingMixin:
    """Overrides prefill of a base AttentionBackend: dense output, curves recorded per request id."""

    def start_shplb(self, runner: Any) -> None:
        folder = Path(runner.server_args.shplb_profile)
        request = ProfileRequest.load(folder)
        self.shplb_recorder = CurveRecorder(request, folder, runner.tp_rank, output_grams(runner))
        self.shplb_blocks: list[QueryBlock] = []
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
        self.sums: dict[str, CurveSums] = {}

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
            k, v = k_pool[slots[index]], v_pool[slots[index]]
            keys, values = k.float().transpose(0, 1), v.float().transpose(0, 1)
            pooled = pool_tokens(k, 0, self.request.rule.score_stride)
            for block in (block for block in blocks if block.request == index):
                bucket = self.request.bucket(block.end_row)
                if bucket is None:
                    continue
                rows = slice(block.offset, block.offset + block.end_row - block.first_row)
                curves = self._measure(layer, q[rows], keys, values, pooled, block, sm_scale)
                self._sums(rid, q.shape[1]).add(layer, bucket, *curves)
            if layer == len(self.grams) - 1 and rid in self.sums:
                self.sums[rid].save(self.folder, rid, self.rank)

    def _sums(self, rid: str, heads: int) -> CurveSums:
        if rid not in self.sums:
            self.sums = {rid: CurveSums.zeros(len(self.grams), heads, len(self.request.lengths))}
        return self.sums[rid]

    def _measure(
        self,
        layer: int,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        pooled: torch.Tensor,
        block: QueryBlock,
        sm_scale: float,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """(recovery sums, error sums, rows) of a block, from every ``row_stride``-th row."""
        rule: SparsityRule = self.request.rule
        order = rank_pages(
            page_scores(q, pooled, block.first_row, sm_scale, rule), block.first_row, block.end_row, rule
        )
        rows = torch.arange(block.first_row, block.end_row, device=q.device)[:: self.request.row_stride]
        sampled = q[:: self.request.row_stride].float().transpose(0, 1)
        grouped = sampled.reshape(keys.shape[0], -1, *sampled.shape[1:])
        mass, partial = page_partials(grouped, keys[:, : block.end_row], values[:, : block.end_row], rows, sm_scale)
        visible, forced = num_pages(block.end_row), rule.num_forced(block.first_row, block.end_row)
        least = min(max(forced, rule.floor_pages), visible)
        counts = [min(max(-int(-density * visible // 1), least), visible) for density in DENSITIES]
        recovery, error = block_curves(
            mass.flatten(0, 1), partial.flatten(0, 1), order, counts, self.grams[layer].to(q.device)
        )
        return recovery.cpu().numpy(), error.cpu().numpy(), len(rows)


def output_grams(runner: Any) -> torch.Tensor:
    """``W^T W`` of every local head's slice of o_proj, float32 [num_layers, local_qo_heads, head_dim, head_dim].

    The squared norm of ``delta @ W^T`` is then ``delta^T (W^T W) delta``, without the hidden size in it.
    """
    grams = []
    head_dim = runner.model_config.head_dim
    for index, layer in enumerate(runner.model.model.layers):
        weight = layer.self_attn.o_proj.weight
        if getattr(layer.self_attn.o_proj, "use_intel_amx_backend", False):
            raise StartRefusedError("o_proj is repacked for AMX here; profile in float32, or on a GPU.")
        if not torch.is_floating_point(weight) or weight.dim() != 2 or weight.shape[1] % head_dim:
            raise StartRefusedError(f"o_proj of layer {index} is not a float matrix; profile unquantised weights.")
        heads = weight.detach().float().view(weight.shape[0], -1, head_dim)
        grams.append(torch.einsum("ohd,ohe->hde", heads, heads))
    return torch.stack(grams)
