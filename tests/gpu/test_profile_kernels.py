# SPDX-License-Identifier: Apache-2.0
"""The kernels that measure head curves, on the GPU, against the torch definition in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from curve_chunks import CurveChunk, make_chunk
from paged_batch import DEVICE

from shplb.kernels.paged_curves import PagedCurves
from shplb.recording import CurveSums, ProfileRequest
from shplb.row_sampling import sampled_rows
from shplb.sglang.metadata import cut_query_blocks
from shplb.sglang.profiling import CurveRecorder

# Weights are rounded to the type of the values, in the definition they are not: (relative, share of the largest).
TOLERANCE = {torch.bfloat16: (0.03, 2e-3), torch.float16: (0.01, 5e-4)}
# Every dtype, head dimension and group size, each pair of them rarely: a new one is seconds of compilation.
SHAPES = [
    (torch.bfloat16, 128, 4, 128), (torch.float16, 128, 8, 128), (torch.bfloat16, 64, 3, 192),
    (torch.float16, 64, 1, 192),
]  # fmt: skip
# A document from its start, inside it, and from within a block; all end in a short block.
SPANS = [(0, 1300), (1536, 3000), (2100, 4003)]


def sample(chunk: CurveChunk, every: int) -> list[np.ndarray]:
    return [
        sampled_rows(block.first_row, block.end_row, every=every, seed=1, document="d", layer=2)
        for block in chunk.blocks
    ]


def check(found: torch.Tensor, expected: torch.Tensor, rows: list[np.ndarray], dtype: torch.dtype) -> None:
    counts = torch.tensor([len(some) for some in rows], device=found.device)[:, None]
    torch.testing.assert_close(found[0] / counts, expected[0] / counts, rtol=1e-3, atol=5e-4)
    relative, share = TOLERANCE[dtype]
    mean, wanted = found[1] / counts, expected[1] / counts
    largest = wanted.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(mean / largest, wanted / largest, rtol=relative, atol=share)
    assert torch.all(found[1][..., -1] <= 1e-6 * expected[1].amax(dim=(1, 2))[:, None])


@pytest.mark.parametrize(("dtype", "head_dim", "group", "query_block"), SHAPES)
@pytest.mark.parametrize(("prefix", "tokens"), SPANS)
def test_curves_equal_the_definition(
    dtype: torch.dtype, head_dim: int, group: int, query_block: int, prefix: int, tokens: int
) -> None:
    chunk = make_chunk(
        prefix, tokens, head_dim=head_dim, group=group, kv_heads=2, query_block=query_block, seed=tokens, dtype=dtype,
        device=DEVICE,
    )  # fmt: skip
    rows = sample(chunk, 8)
    found, expected = chunk.measured(rows), chunk.defined(rows)
    check(found, expected, rows, dtype)
    assert torch.all(expected[1][:, -1, 0] > 0)
    torch.testing.assert_close(chunk.measured(rows), found, rtol=0, atol=0)  # the same to the last bit


def test_all_rows_are_those_of_disjoint_sets() -> None:
    chunk = make_chunk(
        1536, 2500, head_dim=128, group=4, kv_heads=2, query_block=128, seed=5, dtype=torch.bfloat16, device=DEVICE
    )
    rows = [np.arange(block.first_row, block.end_row) for block in chunk.blocks]
    chosen = sample(chunk, 8)
    rest = [np.setdiff1d(every, some) for every, some in zip(rows, chosen, strict=True)]
    whole = chunk.measured(rows)
    check(whole, chunk.defined(rows), rows, torch.bfloat16)
    torch.testing.assert_close(chunk.measured(chosen) + chunk.measured(rest), whole, rtol=1e-4, atol=1e-2)


def test_nothing_waits_for_the_gpu() -> None:
    chunk = make_chunk(
        1536, 3000, head_dim=128, group=4, kv_heads=2, query_block=128, seed=6, dtype=torch.bfloat16, device=DEVICE
    )
    rows = sample(chunk, 8)
    expected = chunk.measured(rows)  # kernels are compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = chunk.measured(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_memory_is_what_the_docs_say() -> None:
    """The last chunk of 131072 tokens, Llama-3.1-8B's shape."""
    chunk = make_chunk(
        131072 - 7680, 131072, head_dim=128, group=4, kv_heads=8, query_block=128, seed=7, dtype=torch.bfloat16,
        device=DEVICE,
    )  # fmt: skip
    rows = sample(chunk, 8)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert torch.isfinite(chunk.measured(rows)).all()
    assert torch.cuda.max_memory_allocated() - before < 400 * 2**20


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_recorder_chooses_the_kernels_on_a_gpu(device: str, tmp_path: Path) -> None:
    chunk = make_chunk(0, 2000, head_dim=64, group=3, kv_heads=2, query_block=192, seed=8, dtype=torch.bfloat16)
    tensors = (chunk.q, chunk.k_pool, chunk.v_pool, chunk.slots)
    request = ProfileRequest(documents=("d",), lengths=(1024, 2000), rule=chunk.rule, exact_document="d")
    found = []
    for name, where in (("measured", torch.device(device)), ("defined", torch.device("cpu"))):
        recorder = CurveRecorder(request, tmp_path / name, 0, chunk.gram[None].to(where))
        q, k_pool, v_pool, slots = (tensor.to(where) for tensor in tensors)
        blocks = cut_query_blocks([0], [2000], 192)
        recorder.record(0, ["d"], q, k_pool, v_pool, [slots], blocks, chunk.sm_scale)
        assert recorder._chunk is not None
        assert isinstance(recorder._chunk[1], PagedCurves) == (where.type == "cuda")
        found += [CurveSums.load(tmp_path / name, document, 0) for document in ("d", "d.exact")]
    for got, wanted in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(got.rows, wanted.rows)
        # Near ties between pages may be ranked otherwise, since scores are rounded to float16.
        np.testing.assert_allclose(got.means()[0], wanted.means()[0], atol=0.01)
        error, defined = got.means()[1], wanted.means()[1]
        assert np.abs(error - defined).max() <= 0.1 * defined.max()
