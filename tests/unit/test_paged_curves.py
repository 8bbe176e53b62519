# SPDX-License-Identifier: Apache-2.0
"""The kernels that measure a chunk's curves, in Triton's interpreter, against the definition block by block."""

import numpy as np
import pytest
import torch
from curve_chunks import CurveChunk, make_chunk

from shplb.kernels import paged_curves
from shplb.kernels.rank_bands import rank_steps, steps_of_ranks
from shplb.kernels.selection import rank_pages
from shplb.row_sampling import sampled_rows

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels are compiled here, and tests/gpu/test_profile_kernels.py checks those"
)


def sample(chunk: CurveChunk, every: int) -> list[np.ndarray]:
    return [
        sampled_rows(block.first_row, block.end_row, every=every, seed=1, document="d", layer=2)
        for block in chunk.blocks
    ]


def check(chunk: CurveChunk, rows: list[np.ndarray]) -> torch.Tensor:
    found, expected = chunk.measured(rows), chunk.defined(rows)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    largest = expected[1].amax(dim=(1, 2), keepdim=True)  # of the head: the first blocks keep all they see
    torch.testing.assert_close(found[1] / largest, expected[1] / largest, rtol=1e-4, atol=1e-7)
    return found


@pytest.mark.parametrize(
    ("prefix", "tokens", "group", "kv_heads", "query_block"),
    [(0, 550, 3, 2, 192), (450, 780, 1, 2, 128), (384, 650, 6, 1, 128)],
)
def test_curves_equal_the_definition(prefix: int, tokens: int, group: int, kv_heads: int, query_block: int) -> None:
    chunk = make_chunk(prefix, tokens, head_dim=64, group=group, kv_heads=kv_heads, query_block=query_block, seed=group)
    found = check(chunk, sample(chunk, 8))
    assert torch.all(found[1][:, -1, 0] > 0)  # pages were left out


def test_many_rows_in_several_passes_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = make_chunk(384, 600, head_dim=64, group=2, kv_heads=1, query_block=128, seed=3)
    rows = sample(chunk, 3)
    whole = check(chunk, rows)
    monkeypatch.setattr(paged_curves, "_BYTES_AT_ONCE", 1)
    torch.testing.assert_close(chunk.measured(rows), whole, rtol=0, atol=0)
    chosen = [some[::3] for some in rows]
    rest = [np.setdiff1d(every, some) for every, some in zip(rows, chosen, strict=True)]
    torch.testing.assert_close(chunk.measured(chosen) + chunk.measured(rest), whole, rtol=1e-5, atol=1e-4)


def test_steps_are_those_of_the_ranking() -> None:
    chunk = make_chunk(320, 840, head_dim=64, group=2, kv_heads=1, query_block=128, seed=9)
    curves, scores = chunk.curves(), chunk.scores()
    scores[:, :, 3:6] = 0.25  # ties
    steps = rank_steps(scores.clone(), curves._forced, curves._visible, curves._steps)
    for index, block in enumerate(chunk.blocks):
        visible = -(-block.end_row // 64)
        counts = paged_curves.kept_counts(block.first_row, block.end_row, chunk.rule)
        order = rank_pages(scores[:, index, :visible], block.first_row, block.end_row, chunk.rule)
        for head in range(2):
            for point, count in enumerate(counts):
                kept = (steps[head, index] <= point).nonzero()[:, 0].tolist()
                assert kept == sorted(order[head, :count].tolist())


def test_steps_of_ranks_by_hand() -> None:
    counts = torch.tensor([[2, 2, 4], [1, 3, 3]])
    assert steps_of_ranks(counts, 5).tolist() == [[0, 0, 2, 2, 127], [0, 1, 1, 127, 127]]
