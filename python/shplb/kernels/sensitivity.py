# SPDX-License-Identifier: Apache-2.0
"""What dropping pages costs the model's loss, per head: sums over the query rows of a document."""

import numpy as np
import torch

from shplb.kernels.block_measurement import BlockMeasurement
from shplb.kernels.curves import output_gram
from shplb.kernels.scores import key_vectors
from shplb.profile import DENSITIES
from shplb.sparsity import SparsityRule


class SensitivityRecorder:
    """Observes attention and its gradient, layer after layer, on all rows of the blocks that it measures.

    Attributes:
        loss: float64 [num_layers, num_qo_heads, num_points], sums of ``(gradient . delta)^2``, delta the sparse minus
            dense output of a head that keeps the pages serving would keep.
        error: same shape, sums of ``|| delta W_o,head ||^2`` over the same rows: the profile's output error.
        slope: float64 [num_layers, num_qo_heads], sums of the squared gradient at the layer's output, restricted to
            what the head can write there.
    """

    def __init__(self, output_weights: list[torch.Tensor], head_dim: int, rule: SparsityRule, first_row: int) -> None:
        """output_weights: o_proj's of every layer; first_row: blocks that end at or before it are left out."""
        self.grams = [output_gram(weight, head_dim) for weight in output_weights]
        self.rule, self.first_row = rule, first_row
        shape = (len(self.grams), len(self.grams[0]), len(DENSITIES))
        self.loss, self.error, self.slope = np.zeros(shape), np.zeros(shape), np.zeros(shape[:2])

    def observe(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        gradient: torch.Tensor,
        sm_scale: float,
    ) -> None:
        """Add one layer.

        q, gradient: [num_tokens, num_qo_heads, head_dim]; k, v: [num_tokens, num_kv_heads, head_dim].
        """
        gram = self.grams[layer].to(q.device)
        keys, values = k.float().transpose(0, 1), v.float().transpose(0, 1)
        pooled = key_vectors(k, self.rule)
        size = self.rule.query_block
        for first in range(0, q.shape[0], size):
            end = min(first + size, q.shape[0])
            if end <= self.first_row:
                continue
            block = BlockMeasurement(q[first:end], keys, values, pooled, first, sm_scale, self.rule)
            rows = torch.arange(first, end, device=q.device)
            loss, error = block.sensitivity(rows, gradient[first:end], gram)
            self.loss[layer] += loss.cpu().numpy()
            self.error[layer] += error.cpu().numpy()
            self.slope[layer] += restricted_square(gradient[first:end], gram).cpu().numpy()


def restricted_square(gradient: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Squared norm of the layer-output gradient's part in the span of each head's slice of o_proj, summed over rows.

    With ``gradient = G W`` at the head's output, that part is ``G W (W^T W)^-1 W^T``, and its square
    ``gradient (W^T W)^-1 gradient^T``. gradient: [num_rows, num_heads, head_dim]; gram: [num_heads, head_dim,
    head_dim]. Returns float64 [num_heads]; directions that W all but ignores are left out.
    """
    inverse = torch.linalg.pinv(gram.double(), hermitian=True, rtol=1e-6)
    slopes = gradient.double()
    return torch.einsum("rhd,hde,rhe->h", slopes, inverse, slopes)
