# SPDX-License-Identifier: Apache-2.0
"""Curves of one request's query blocks in one prefill chunk: which code measures them, and the definition in torch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from shplb.kernels.block_measurement import BlockMeasurement, BlockRows, Measure
from shplb.kernels.paged_curves import PagedCurves
from shplb.kernels.scores import key_vectors
from shplb.sparsity import SparsityRule


class ChunkCurves(Protocol):
    """Made once per chunk, used in every layer."""

    def layer(self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, sm_scale: float) -> Measure:
        """Rank the pages of every block in one layer.

        q: [num_rows, num_qo_heads, head_dim]; k_pool, v_pool: [pool_tokens, num_kv_heads, head_dim], which already hold
        the new tokens.
        """


class TorchCurves:
    """Block by block in torch: the definition, for CPUs and for types that the kernels don't take."""

    def __init__(self, blocks: Sequence[BlockRows], slots: torch.Tensor, rule: SparsityRule) -> None:
        """slots: int64 [num_tokens], pool slots of the request's tokens from token 0 on."""
        self._blocks, self._slots, self._rule = blocks, slots, rule

    def layer(self, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, sm_scale: float) -> Measure:
        k, v = k_pool[self._slots], v_pool[self._slots]
        keys, values = k.float().transpose(0, 1), v.float().transpose(0, 1)
        pooled = key_vectors(k, self._rule)

        def measure(rows: Sequence[np.ndarray], gram: torch.Tensor) -> torch.Tensor:
            found = []
            for block, chosen in zip(self._blocks, rows, strict=True):
                own = q[block.offset : block.offset + block.end_row - block.first_row]
                part = BlockMeasurement(own, keys, values, pooled, block.first_row, sm_scale, self._rule)
                found.append(torch.stack(part.curves(torch.from_numpy(chosen).to(q.device), gram)))
            return torch.stack(found, dim=2)

        return measure


def chunk_curves(
    blocks: Sequence[BlockRows], slots: torch.Tensor, rule: SparsityRule, q: torch.Tensor, k_pool: torch.Tensor
) -> ChunkCurves:
    """The kernels on a GPU, where they take the tensors' types; else torch.

    slots: int64 [num_tokens] as of :class:`TorchCurves`; the kernels need the tokens of a page together.
    """
    if q.is_cuda and PagedCurves.takes(q, k_pool, rule):
        return PagedCurves(blocks, slots, rule, q, k_pool)
    return TorchCurves(blocks, slots, rule)
