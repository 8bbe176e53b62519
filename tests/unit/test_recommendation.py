# SPDX-License-Identifier: Apache-2.0
"""The rule that recommends budgets, on made-up samples; candidates at equal computed density; the printed table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from synthetic import make_profile, make_shape

from shplb.commands.compare import describe, print_comparison
from shplb.device import H200, Device
from shplb.planner import CostModel
from shplb.planning import PlanningError
from shplb.quality import comparison
from shplb.quality.candidates import WAYS, computed_density, make_candidates
from shplb.quality.comparison import Question, compare_budgets
from shplb.quality.measurement import Sample
from shplb.quality.recommendation import compare, keeps_answers, paired_interval, recommend

DEFAULT, LAYER = "min_error, per model", "min_error, per layer"
DENSE = Sample(np.random.default_rng(0).normal(3.0, 0.5, 40), np.zeros(10), np.array([True] * 9 + [False]))


def sample(over: float, noise: float = 0.01, wrong: int = 0, seed: int = 1) -> Sample:
    """Windows that lose ``over`` +- ``noise``; the first ``wrong`` answers are wrong."""
    windows = DENSE.windows + np.random.default_rng(seed).normal(over, noise, 40)
    right = DENSE.right.copy()
    right[:wrong] = False
    return Sample(windows, np.zeros(10), right)


def decide(samples: dict[tuple[str, float], Sample], *, pays: bool = True, tolerance: float = 0.05) -> Any:
    rows = [
        compare(name, asked, asked, found, DENSE, tolerance=tolerance, is_default=name == DEFAULT)
        for (name, asked), found in samples.items()
    ]
    return recommend(rows, samples, pays={asked: pays for _, asked in samples})


def test_paired_interval_is_students() -> None:
    values = np.random.default_rng(3).normal(0.1, 1.0, 12)
    mean, half = paired_interval(values)
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))
    assert paired_interval(values[:1]) == (values[0], float("inf"))


def test_least_density_that_keeps_quality() -> None:
    found = decide({(DEFAULT, 0.1): sample(0.2), (DEFAULT, 0.2): sample(0.02), (DEFAULT, 0.4): sample(0.0)})
    assert (found.name, found.asked) == (DEFAULT, 0.2)


def test_default_unless_another_is_surely_better() -> None:
    same = decide({(DEFAULT, 0.2): sample(0.020, seed=1), (LAYER, 0.2): sample(0.019, seed=2)})
    assert (same.name, "can't be told apart" in same.why) == (DEFAULT, True)
    better = decide({(DEFAULT, 0.2): sample(0.040, seed=1), (LAYER, 0.2): sample(0.010, seed=2)})
    assert (better.name, "better than the default" in better.why) == (LAYER, True)


def test_another_where_the_default_loses_answers() -> None:
    found = decide({(DEFAULT, 0.2): sample(0.0, wrong=5), (LAYER, 0.2): sample(0.03)})
    assert found.name == LAYER


def test_dense_where_nothing_keeps_quality() -> None:
    found = decide({(DEFAULT, 0.1): sample(0.2), (DEFAULT, 0.2): sample(0.1)})
    assert (found.name, found.asked) == (None, None)
    assert "no budgets keep quality" in found.why


def test_wide_intervals_are_no_evidence() -> None:
    assert decide({(DEFAULT, 0.2): sample(0.0, noise=0.5)}).name is None
    assert decide({(DEFAULT, 0.2): sample(0.0, noise=0.5)}, tolerance=1.0).name == DEFAULT


def test_dense_where_sparse_is_not_faster() -> None:
    found = decide({(DEFAULT, 0.2): sample(0.0)}, pays=False)
    assert (found.name, "not predicted to be faster" in found.why) == (None, True)


@pytest.mark.parametrize(
    ("lost", "won", "prompts", "kept"),
    [(0, 0, 10, True), (1, 0, 10, True), (2, 0, 10, False), (2, 1, 10, True), (4, 3, 40, True), (5, 0, 100, False),
     (4, 0, 100, True), (0, 9, 10, True), (9, 1, 100, False)],
)  # fmt: skip
def test_answers(lost: int, won: int, prompts: int, kept: bool) -> None:
    assert keeps_answers(lost, won, prompts) == kept
    if lost + won:
        chance = stats.binomtest(lost, lost + won, 0.5, alternative="greater").pvalue
        assert kept == (chance > 0.05 and lost - won <= prompts / 10)


PROFILE = make_profile(make_shape(layers=3, kv_heads=4, group=2, inert=(3,)))


@pytest.mark.parametrize("computed", [0.15, 0.3, 1.0])
def test_candidates_compute_the_same(computed: float) -> None:
    made = make_candidates(PROFILE, WAYS, computed, tokens=8192, tp_size=2)
    assert [(candidate.objective, candidate.scope) for candidate in made] == list(WAYS)
    assert [candidate.is_default for candidate in made] == [True, False, False, False, False]
    assert len({candidate.name for candidate in made}) == len(WAYS)
    for candidate in made:
        assert candidate.computed_density == computed_density(candidate.plan, 8192)
        assert 0.0 <= computed - candidate.computed_density < 0.01


def test_density_below_what_is_always_kept() -> None:
    with pytest.raises(PlanningError, match="can't be computed at 2048 tokens"):
        make_candidates(PROFILE, WAYS, 0.1, tokens=2048, tp_size=1)


@pytest.mark.parametrize("device", [H200, Device(CostModel(layer_ns=10**8))])
def test_whole_comparison(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """With a server made up: uniform loses much, everything else little; the least density is chosen if it pays."""
    served: list[str] = []

    def measure(plan: Any, *_: Any, name: str, **__: Any) -> Sample:
        served.append(name)
        return DENSE if plan is None else sample(0.3 if plan.objective == "uniform" else 0.01, seed=len(served))

    monkeypatch.setattr(comparison, "measure", measure)
    question = Question(Path("m"), WAYS, (0.2, 0.4), 16384, 2, "cpu", 0.05)
    found = compare_budgets(PROFILE, question, [], [None] * 10, device)  # type: ignore[list-item]
    assert served[0] == "dense"
    assert len(served) == len(set(served)) == 11
    assert [row.keeps_quality for row in found.rows] == [True] * 4 + [False] + [True] * 4 + [False]
    if device is H200:
        assert found.recommendation.asked == 0.2
        assert found.plan is not None
        assert computed_density(found.plan, 16384) == pytest.approx(0.2, abs=0.01)
    else:
        assert (found.recommendation.name, found.plan) == (None, None)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(found, 16384, console)
    text = console.export_text()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 100
    facts = json.loads(json.dumps(describe(found, 16384)))
    for row in facts["rows"]:
        assert f"{row['nll_over_dense']:+.4f}" in text
    assert (found.recommendation.name or "dense (no plan)") in text
