# SPDX-License-Identifier: Apache-2.0
"""Norms of the residual stream: seen at every decoder layer, kept with the curves, averaged over documents."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from shplb.assembly import mean_residual
from shplb.recording import CurveSums, ProfileRequest
from shplb.sglang.metadata import QueryBlock
from shplb.sglang.profiling import CurveRecorder, watch_residual
from shplb.sglang.running_sums import RunningSums
from shplb.sparsity import SparsityRule

HEADS, DIM, TOKENS = 2, 8, 200


class DecoderLayer(torch.nn.Module):
    """Called as SGLang's models call theirs; its attention is recorded before the layer after it is entered."""

    def __init__(self, index: int, recorder: CurveRecorder) -> None:
        super().__init__()
        self.index, self.recorder = index, recorder

    def forward(
        self, positions: Any, hidden_states: torch.Tensor, forward_batch: list[str], residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = torch.randn(TOKENS, HEADS, DIM), torch.randn(2, TOKENS, 1, DIM)
        blocks = [QueryBlock(0, 0, 0, 128), QueryBlock(0, 128, 128, TOKENS)]
        slots = [torch.arange(TOKENS)] * len(forward_batch)
        self.recorder.record(self.index, forward_batch, q, *k, slots, blocks, DIM**-0.5)
        return hidden_states * 2, hidden_states if residual is None else residual + hidden_states


def test_what_layers_add_to_is_recorded(tmp_path: Path) -> None:
    request = ProfileRequest(documents=("d",), lengths=(TOKENS,), rule=SparsityRule(128), row_sampling=8)
    recorder = CurveRecorder(request, tmp_path, 0, torch.eye(DIM).expand(2, HEADS, DIM, DIM))
    layers = torch.nn.ModuleList([DecoderLayer(index, recorder) for index in range(2)])
    watch_residual(layers, recorder)
    first = torch.randn(TOKENS, 16)
    for rids in (["d"], ["another"]):
        hidden, residual = first, None
        for layer in layers:
            hidden, residual = layer(None, hidden, rids, residual=residual)
    sums = CurveSums.load(tmp_path, "d", 0)
    square = float(first.square().sum())
    # Into the second layer go twice the first's input and the input itself.
    np.testing.assert_allclose(sums.residual, [[square, TOKENS], [9 * square, TOKENS]], rtol=1e-4)
    np.testing.assert_allclose(mean_residual([sums, sums])[0], square / TOKENS, rtol=1e-4)
    assert mean_residual([RunningSums(2, HEADS, 1, torch.device("cpu")).on_host()]).tolist() == [0.0, 0.0]
