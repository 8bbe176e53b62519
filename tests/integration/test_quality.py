# SPDX-License-Identifier: Apache-2.0
"""A small form of the quality bench: density 1 is stock, and sparse attention loses no more than it did.

``quality_reference.json`` is what this very run gave; make it again with its command after a change that is meant to
change answers. Budgets are uniform, so that no profile has to be measured first, and the model has a third of its
layers, which solves no task but loses as much NLL: `bench_quality.py --quick` asks the whole one.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shplb.model import ModelShape, fingerprint, read_config
from shplb.profile import DENSITIES, HeadProfile
from shplb.sparsity import SparsityRule, query_block_size

pytestmark = pytest.mark.server

BENCH = Path(__file__).parents[2] / "bench" / "bench_quality.py"
REFERENCE = Path(__file__).with_name("quality_reference.json")
TOKENS, SPARSE, WHOLE = 1280, "uniform@0.6", "uniform@1.0"
OPTIONS = f"--tokens {TOKENS} --variants dense {SPARSE} {WHOLE} --tasks multi_turn".split()
AMOUNTS = ["--prompts", "1", "--num-texts", "2", "--timed", "0", "--parallel", "3"]


def flat_profile(model: Path, path: Path) -> Path:
    """A profile without measurements: under uniform budgets only the shape and the rule are read."""
    shape = ModelShape.from_config(read_config(model))
    curves = np.broadcast_to(np.array(DENSITIES), (1, shape.num_layers, shape.num_qo_heads, 1, len(DENSITIES)))
    profile = HeadProfile(
        model=shape,
        fingerprint=fingerprint(model),
        rule=SparsityRule(query_block=query_block_size(shape.head_dim), dense_below_tokens=256),
        documents=("none",),
        documents_hash="",
        versions={},
        lengths=np.array([TOKENS], dtype=np.int64),
        densities=np.array(DENSITIES),
        rows=np.ones((1, 1), dtype=np.int64),
        error=(1.0 - curves).astype(np.float32),
        recovery=curves.astype(np.float32),
    )
    profile.save(path)
    return path


def command(model: Path, folder: Path) -> list[str]:
    profile = flat_profile(model, folder / "flat.profile.safetensors")
    options = ["--model-path", str(model), "--profile", str(profile), *OPTIONS, *AMOUNTS]
    return [sys.executable, str(BENCH), *options, "--work", str(folder), "--out", str(folder / "quality.json")]


def replies(folder: Path, variant: str) -> dict[str, list[str]]:
    return dict(json.loads((folder / f"{variant}.{TOKENS}.replies.json").read_text()))


def test_density_one_is_stock_and_sparse_loses_no_more_than_before(smollm2_short: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [*command(smollm2_short, tmp_path), "--check", str(REFERENCE)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "quality.json").read_text())["rows"]}
    assert rows.keys() == {"dense", SPARSE, WHOLE}
    # Ours computed every page, and gave what stock gave; with fewer pages it gave something else.
    assert rows[WHOLE]["sparse_steps"] > 0
    assert rows[WHOLE]["measured_density"] == 1.0
    assert replies(tmp_path, WHOLE) == replies(tmp_path, "dense")
    assert 0.5 < rows[SPARSE]["measured_density"] < 0.8
    assert rows[SPARSE]["window_nll"] != rows["dense"]["window_nll"]
    cached, prompt_tokens = rows[SPARSE]["multi_turn_cached"]
    assert cached > 0.8 * prompt_tokens
