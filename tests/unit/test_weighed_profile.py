# SPDX-License-Identifier: Apache-2.0
"""Importance of heads and row sampling in profile files, and importance in budgets."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from synthetic import assert_same, make_profile

from shplb.allocation import allocate_apart
from shplb.commands.profile import describe, importance_text, sampling_text
from shplb.container import save_container
from shplb.planning import make_plan
from shplb.profile import HeadProfile
from shplb.row_sampling import RowSampling, SamplingDifference
from shplb.stability import stability


def test_files_from_before_importance_and_row_sampling(tmp_path: Path) -> None:
    profile = make_profile()
    facts = msgspec.to_builtins(profile, builtin_types=(np.ndarray,))
    for name in ("importance", "importance_method", "row_sampling", "residual"):
        del facts[name]
    tensors = {name: facts.pop(name) for name in ("lengths", "densities", "rows", "error", "recovery")}
    save_container(tmp_path / "p", "HeadProfile", 1, tensors, facts)
    loaded = HeadProfile.load(tmp_path / "p")
    assert_same(loaded, profile)
    assert loaded.importance.tolist() == np.ones((3, 8)).tolist()
    assert (loaded.importance_method, loaded.row_sampling) == ("", None)


def test_what_is_measured_of_importance_and_rows_is_kept(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).uniform(0, 2, (3, 8))
    difference = SamplingDifference("a", (0, 4), 7, 0.001, 0.01, 0.1, 1.5)
    changes = {"importance": weights / weights.mean(), "importance_method": "fisher, 1 document"}
    made = msgspec.structs.replace(make_profile(), **changes, row_sampling=RowSampling(8, 3, difference))
    made.save(tmp_path / "p")
    assert_same(HeadProfile.load(tmp_path / "p"), made)


def test_importance_weighs_error_and_nothing_else() -> None:
    profile = make_profile()
    weights = 10 ** np.random.default_rng(1).uniform(-2, 2, (3, 8))
    weights /= weights.mean()
    weighed = msgspec.structs.replace(profile, importance=weights)
    # Weights that are powers of two would give the same bytes; these differ by the rounding of float32 curves.
    scaled = msgspec.structs.replace(profile, error=(profile.error * weights[None, :, :, None, None]).astype("f4"))

    def budgets(each: HeadProfile, objective: Any) -> np.ndarray:
        return allocate_apart(each, each.rule, 0.2, 1, objective=objective, scope="model").budgets

    np.testing.assert_allclose(budgets(weighed, "min_error"), budgets(scaled, "min_error"), atol=1e-3)
    assert np.abs(budgets(weighed, "min_error") - budgets(profile, "min_error")).max() > 0.1
    for objective in ("max_min", "max_mean", "uniform"):
        np.testing.assert_array_equal(budgets(weighed, objective), budgets(profile, objective))
    assert (
        make_plan(weighed, tp_size=1, density=0.2).profile_hash
        != make_plan(profile, tp_size=1, density=0.2).profile_hash
    )


def test_the_command_says_what_was_sampled_and_weighed() -> None:
    profile = make_profile()
    assert sampling_text(RowSampling(1, 0)) == "every query row was measured"
    difference = SamplingDifference("a", (0, 4), 7, 0.00125, 0.0125, 0.125, 1.5)
    text = sampling_text(RowSampling(8, 3, difference))
    assert text.startswith("1 query row in 8 was measured; against all rows of a, recovery differs by 0.0013 ")
    assert text.endswith("12.5% and 150.0% of each curve's largest")
    weights = np.linspace(0, 2, 24).reshape(3, 8)
    weighed = msgspec.structs.replace(profile, importance=weights, importance_method="fisher, 1 document")
    assert "5% below 0.1, median 1, 5% above 1.9 of the mean" in importance_text(weighed)
    sampled = msgspec.structs.replace(weighed, row_sampling=RowSampling(8, 3, difference))
    made = json.loads(json.dumps(describe(sampled, stability(sampled), Path("p"), asked=12)))
    assert (made["documents_asked"], made["documents"]) == (12, list(profile.documents))
    assert made["importance"] == {"method": "fisher, 1 document", "weights": weights.tolist()}
    assert made["row_sampling"]["difference"]["error_worst"] == 1.5
