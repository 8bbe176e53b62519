# SPDX-License-Identifier: Apache-2.0
"""One query block, its pages ranked as serving would rank them, measured on any of its rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from shplb.kernels.curves import block_curves, block_sensitivity, page_partials
from shplb.kernels.scores import page_scores
from shplb.kernels.selection import rank_pages
from shplb.profile import DENSITIES
from shplb.sparsity import SparsityRule, num_pages

# Memory follows rows times keys: for 24 rows of 32 heads and 131072 keys 0.4 GB of weights, 0.8 GB of partial outputs.
_ROWS_AT_ONCE = 24

#: (rows of every block, gram) -> (recovery, error) of a chunk's blocks, sums over rows: float64 [2, num_qo_heads,
#: num_blocks, num_points]. Rows: absolute positions, int64, as many of each block as wanted; gram: as of
#: ``BlockMeasurement.curves``.
Measure = Callable[[Sequence[np.ndarray], torch.Tensor], torch.Tensor]


class BlockRows(NamedTuple):
    """Rows [first_row, end_row) of a request, absolute positions; ``offset`` is the first row's place in q."""

    offset: int
    first_row: int
    end_row: int


class BlockMeasurement:
    """Curves of one query block over ``DENSITIES``.

    Results are sums over rows, so that those of disjoint sets of rows can be added.
    """

    def __init__(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        pooled: torch.Tensor,
        first_row: int,
        sm_scale: float,
        rule: SparsityRule,
    ) -> None:
        """q: [num_rows, num_qo_heads, head_dim], row 0 at absolute position ``first_row``; keys, values: float32
        [num_kv_heads, num_tokens, head_dim] of the request from token 0 on; pooled: its keys from ``key_vectors``.
        """
        end_row = first_row + q.shape[0]
        self.q, self.first_row, self.sm_scale = q, first_row, sm_scale
        self.keys, self.values = keys[:, :end_row], values[:, :end_row]
        self.order = rank_pages(page_scores(q, pooled, first_row, sm_scale, rule), first_row, end_row, rule)
        self.counts = kept_counts(first_row, end_row, rule)

    def curves(self, rows: torch.Tensor, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(recovery, error), each float64 [num_qo_heads, num_points]: sums over ``rows``, absolute int64 positions.

        gram: float32 [num_qo_heads, head_dim, head_dim], ``W^T W`` of every head's slice of o_proj.
        """
        shape = (self.q.shape[1], len(self.counts))
        recovery, error = torch.zeros((2, *shape), dtype=torch.float64, device=self.q.device)
        for part in rows.split(_ROWS_AT_ONCE):
            mass, partial = self._partials(part)
            found = block_curves(mass, partial, self.order, self.counts, gram)
            recovery += found[0]
            error += found[1]
        return recovery, error

    def sensitivity(
        self, rows: torch.Tensor, gradient: torch.Tensor, gram: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, error), each float64 [num_qo_heads, num_points]: sums over ``rows`` of ``(gradient . delta)^2`` and of
        output error.

        gradient: [num_rows, num_qo_heads, head_dim], of the loss with respect to the head's output at all rows of the
        block; delta: sparse minus dense head output.
        """
        shape = (self.q.shape[1], len(self.counts))
        loss, error = torch.zeros((2, *shape), dtype=torch.float64, device=self.q.device)
        for part in rows.split(_ROWS_AT_ONCE):
            mass, partial = self._partials(part)
            slopes = gradient[part - self.first_row].float().transpose(0, 1)
            loss += block_sensitivity(mass, partial, self.order, self.counts, slopes)
            error += block_curves(mass, partial, self.order, self.counts, gram)[1]
        return loss, error

    def _partials(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Page sums of ``rows``, heads flattened; see ``page_partials``."""
        sampled = self.q[rows - self.first_row].float().transpose(0, 1)
        grouped = sampled.reshape(self.keys.shape[0], -1, *sampled.shape[1:])
        mass, partial = page_partials(grouped, self.keys, self.values, rows, self.sm_scale)
        return mass.flatten(0, 1), partial.flatten(0, 1)


def kept_counts(first_row: int, end_row: int, rule: SparsityRule) -> list[int]:
    """Pages that a block with rows [first_row, end_row) keeps at each of ``DENSITIES``: never fewer than are forced."""
    visible, forced = num_pages(end_row), rule.num_forced(first_row, end_row)
    least = min(max(forced, rule.floor_pages), visible)
    return [min(max(-int(-density * visible // 1), least), visible) for density in DENSITIES]
