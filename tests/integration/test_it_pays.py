# SPDX-License-Identifier: Apache-2.0
"""Least-output-error budgets lose less than uniform ones at equal computed density, on text they never saw."""

from pathlib import Path

import numpy as np
import pytest
from plugged_model import PluggedModel
from quality.sampling import WINDOW
from quality.variants import plan_at
from transformers import AutoTokenizer

from shplb.policies import BUDGETS
from shplb.quality.candidates import computed_density
from shplb.texts import calibration_documents, held_out_documents

pytestmark = pytest.mark.server

TOKENS, DENSITY = 3072, 0.3


def test_least_output_error_beats_uniform(smollm2: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), PluggedModel(smollm2, TOKENS)
    calibration = calibration_documents(TOKENS, tokenizer, domains=["prose", "manual"], limit=2)
    profile = model.profile([document.token_ids for document in calibration])
    plans = {name: plan_at(profile, BUDGETS[name], DENSITY, TOKENS) for name in ("uniform", "min_error")}
    for plan in plans.values():
        assert computed_density(plan, TOKENS) == pytest.approx(DENSITY, rel=0.01)
    losses: dict[str, list[np.ndarray]] = {"uniform": [], "min_error": []}
    for document in held_out_documents(TOKENS, tokenizer, domains=["prose", "code", "manual", "dialogue"], limit=3):
        dense = model.nll(document.token_ids, None)
        for name, plan in plans.items():
            # Only rows beyond the first half: before that, floors leave budgets little to decide.
            over = (model.nll(document.token_ids, plan) - dense)[TOKENS // 2 :]
            losses[name].append(over[: len(over) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1))
    uniform, min_error = (np.concatenate(losses[name]) for name in ("uniform", "min_error"))
    gain = uniform - min_error
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"over dense: uniform {uniform.mean():.4f}, min_error {min_error.mean():.4f}, gain's error {error:.4f}")
    assert gain.mean() > 2 * error
