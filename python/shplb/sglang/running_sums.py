# SPDX-License-Identifier: Apache-2.0
"""Curve sums of one document on the device that measures them, so that no layer waits for a copy."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch

from shplb.profile import DENSITIES
from shplb.recording import CurveSums


class RunningSums:
    """What :class:`shplb.recording.CurveSums` holds, until it is asked for.

    curves: float64 [2, num_layers, local_qo_heads, num_lengths, num_points], recovery and error; residual: float64
    [num_layers]; rows: int64 [num_layers, num_lengths] on the CPU.
    """

    def __init__(self, num_layers: int, num_heads: int, num_lengths: int, device: torch.device) -> None:
        shape = (2, num_layers, num_heads, num_lengths, len(DENSITIES))
        self.curves = torch.zeros(shape, dtype=torch.float64, device=device)
        self.rows = np.zeros((num_layers, num_lengths), dtype=np.int64)
        self._residual = torch.zeros(num_layers, dtype=torch.float64, device=device)
        self._residual_rows = np.zeros(num_layers, dtype=np.int64)

    def add(self, layer: int, buckets: Sequence[int], found: torch.Tensor, rows: Sequence[int]) -> None:
        """Add the blocks of a chunk: the length of each, its sums over rows, and over how many.

        found: float64 [2, local_qo_heads, num_blocks, num_points].
        """
        start = 0
        # Sums over runs of blocks, since adding by index is in no fixed order on a GPU.
        for bucket, run in groupby(buckets):
            end = start + len(list(run))
            self.curves[:, layer, :, bucket] += found[:, :, start:end].sum(dim=2)
            self.rows[layer, bucket] += sum(rows[start:end])
            start = end

    def add_residual(self, layer: int, squares: torch.Tensor, rows: int) -> None:
        """Add the squared norm of what a layer adds its output to, a scalar on the device, over so many rows."""
        self._residual[layer] += squares
        self._residual_rows[layer] += rows

    def on_host(self) -> CurveSums:
        """Waits for what was measured so far."""
        recovery, error = self.curves.cpu().numpy()
        residual = np.stack([self._residual.cpu().numpy(), self._residual_rows.astype(np.float64)], axis=1)
        return CurveSums(recovery, error, self.rows.copy(), residual)
