# SPDX-License-Identifier: Apache-2.0
"""Sampled query rows: which they are, that every rank takes the same, and that exact counting is exact."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import is_one_sentence, make_shape

from shplb.assembly import measured_sampling
from shplb.errors import CalibrationError
from shplb.recording import CurveSums, ProfileRequest, exact_name
from shplb.row_sampling import compare_curves, sampled_rows
from shplb.sglang.metadata import QueryBlock, cut_query_blocks
from shplb.sglang.profiling import CurveRecorder
from shplb.sparsity import SparsityRule

TOKENS, KV_HEADS, GROUP, DIM, LAYERS = 700, 4, 2, 16, 6
RULE = SparsityRule(query_block=128)


def rows(**changes: object) -> np.ndarray:
    arguments = {"every": 8, "seed": 0, "document": "document000", "layer": 3} | changes
    return sampled_rows(256, 384, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [1, 3, 8])
def test_one_row_of_every_run(every: int) -> None:
    found = sampled_rows(256, 355, every=every, seed=0, document="a", layer=0)
    assert found.dtype == np.int64
    assert ((found - 256) // every).tolist() == list(range(-(-99 // every)))
    assert found[-1] < 355


def test_choice_depends_on_the_arguments_alone() -> None:
    assert rows().tolist() == rows().tolist()
    # What other machines and releases must choose, too.
    assert rows()[:6].tolist() == [259, 266, 279, 284, 295, 301]
    for change in ({"seed": 1}, {"document": "document001"}, {"layer": 4}):
        assert rows(**change).tolist() != rows().tolist()


def test_every_row_is_as_likely() -> None:
    counts = np.bincount(np.concatenate([rows(seed=seed) - 256 for seed in range(400)]), minlength=128)
    assert counts.sum() == 400 * 16
    assert 25 < counts.min() <= counts.max() < 80  # 50 expected, standard deviation 6.6


def record(folder: Path, heads: slice, rank: int, **changes: object) -> CurveRecorder:
    """A recorder that has seen one document, its KV groups ``heads`` only."""
    generator = torch.Generator().manual_seed(0)
    fields = {"documents": ("d",), "lengths": (256, 700), "rule": RULE, "exact_document": "d"} | changes
    mine = slice(heads.start * GROUP, heads.stop * GROUP)
    grams = torch.randn(LAYERS, KV_HEADS * GROUP, DIM, DIM, generator=generator)
    grams = (grams @ grams.transpose(2, 3))[:, mine]
    recorder = CurveRecorder(ProfileRequest(**fields), folder, rank, grams)  # type: ignore[arg-type]
    blocks: list[QueryBlock] = cut_query_blocks([0], [TOKENS], RULE.query_block)
    for layer in range(LAYERS):
        q = 3 * torch.randn(TOKENS, KV_HEADS * GROUP, DIM, generator=generator)
        k, v = torch.randn(2, TOKENS, KV_HEADS, DIM, generator=generator)
        slots = [torch.arange(TOKENS)]
        recorder.record(layer, ["d"], q[:, mine], k[:, heads], v[:, heads], slots, blocks, DIM**-0.5)
    return recorder


def test_ranks_together_measure_what_one_does(tmp_path: Path) -> None:
    record(tmp_path / "one", slice(0, 4), 0)
    for rank, heads in enumerate((slice(0, 2), slice(2, 4))):
        record(tmp_path / "two", heads, rank)
    for name in ("d", exact_name("d")):
        one = CurveSums.load(tmp_path / "one", name, 0)
        two = CurveSums.concatenate([CurveSums.load(tmp_path / "two", name, rank) for rank in (0, 1)])
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_allclose(one.recovery, two.recovery, rtol=1e-5)
        np.testing.assert_allclose(one.error, two.error, rtol=1e-4, atol=1e-6 * one.error.max())


def test_exact_counting_is_that_of_every_row(tmp_path: Path) -> None:
    record(tmp_path / "a", slice(0, 4), 0)
    every = record(tmp_path / "b", slice(0, 4), 0, row_sampling=1, exact_document="")
    assert every.exact is None
    part, exact = (CurveSums.load(tmp_path / "a", name, 0) for name in ("d", exact_name("d")))
    whole = CurveSums.load(tmp_path / "b", "d", 0)
    twice = [layer for layer in range(LAYERS) if exact.rows[layer].any()]
    assert twice == [0, 4]
    np.testing.assert_array_equal(exact.rows[twice], whole.rows[twice])
    np.testing.assert_allclose(exact.recovery[twice], whole.recovery[twice], rtol=1e-5)
    np.testing.assert_allclose(exact.error[twice], whole.error[twice], rtol=1e-4, atol=1e-3)
    assert part.rows.sum() * 7 < whole.rows.sum() < part.rows.sum() * 8.01


def test_difference_is_measured_over_all_ranks(tmp_path: Path) -> None:
    for rank, heads in enumerate((slice(0, 2), slice(2, 4))):
        recorder = record(tmp_path, heads, rank)
    sums = CurveSums.concatenate([CurveSums.load(tmp_path, "d", rank) for rank in (0, 1)])
    exact = CurveSums.concatenate([CurveSums.load(tmp_path, exact_name("d"), rank) for rank in (0, 1)])
    model = make_shape(layers=LAYERS, kv_heads=KV_HEADS, group=GROUP, inert=(3,))
    found = measured_sampling(tmp_path, recorder.request, 2, sums, model, "a text")
    difference = found.difference
    assert (found.every, found.seed) == (8, 0)
    assert difference is not None
    assert (difference.document, difference.layers) == ("a text", (0, 4))
    assert difference.curves == 2 * 6 * 2  # layers, heads that are not inert, lengths
    apart = np.abs(sums.means()[0] - exact.means()[0])[[0, 4], :6, :, :-1]
    assert difference.recovery_worst == pytest.approx(apart.max())
    assert difference.recovery_mean == pytest.approx(apart.mean())
    assert 0 < difference.error_mean < difference.error_worst
    (tmp_path / "d.exact.rank1.sums.safetensors").unlink()
    with pytest.raises(CalibrationError, match=r"no curves of d\.exact were recorded") as caught:
        measured_sampling(tmp_path, recorder.request, 2, sums, model, "a text")
    assert is_one_sentence(str(caught.value).replace(": give", "; give"))


def test_comparison_by_hand() -> None:
    recovery = np.array([[0.5, 0.8, 1.0]]), np.array([[0.4, 0.8, 1.0]])
    error = np.array([[4.0, 1.0, 9.0], [0.0, 0.0, 0.0]]), np.array([[5.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    found = compare_curves(recovery, error)
    assert found["recovery_worst"] == pytest.approx(0.1)
    assert found["recovery_mean"] == pytest.approx(0.05)
    assert found["error_worst"] == pytest.approx(0.2)
    assert found["error_mean"] == pytest.approx(0.1)
