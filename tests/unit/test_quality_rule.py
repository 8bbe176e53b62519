# SPDX-License-Identifier: Apache-2.0
"""Intervals of differences, and the rule by which a density counts as free of loss."""

import numpy as np
import pytest
from quality.bootstrap import Interval, nll_difference, resampled_means, task_differences
from quality.verdict import choose, counted_tasks, judge, resolvable_points
from scipy.stats import bootstrap as scipy_bootstrap
from synthetic import is_one_sentence


def exact(value: float) -> Interval:
    return Interval(value, value, value, value, value)


def test_interval_of_a_mean_is_scipys() -> None:
    rng = np.random.default_rng(5)
    dense = rng.integers(0, 5, size=60) / 4
    ours = np.clip(dense - (rng.random(60) < 0.2) * 0.25, 0, 1)
    found = task_differences({"a": list(ours)}, {"a": list(dense)}).mean
    reference = scipy_bootstrap(
        (100 * (ours - dense),), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.value == pytest.approx(100 * (ours - dense).mean())
    assert found.low == pytest.approx(reference.low, abs=0.3)
    assert found.high == pytest.approx(reference.high, abs=0.3)
    assert found.low < found.least < found.value < found.most < found.high


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for run in range(60):
        drawn = rng.normal(0.02, 0.1, size=80)
        dense = {"text": list(np.full(80, 2.0))}
        nats, _ = nll_difference({"text": list(2.0 + drawn)}, dense, seed=run)
        inside += nats.low <= 0.02 <= nats.high
    assert 52 <= inside <= 60


def test_pairing_removes_what_both_share() -> None:
    hard = np.random.default_rng(1).normal(2.5, 1.0, size=200)
    nats, percent = nll_difference({"t": list(hard + 0.01)}, {"t": list(hard)})
    assert nats.value == pytest.approx(0.01)
    assert nats.high - nats.low < 1e-9
    assert percent.value == pytest.approx(100 * 0.01 / hard.mean())
    assert percent.high - percent.low < 0.1


def test_texts_count_by_their_windows() -> None:
    nats, _ = nll_difference({"a": [1.0] * 3, "b": [4.0]}, {"a": [1.0] * 3, "b": [2.0]})
    assert nats.value == pytest.approx(0.5)


def test_mean_and_worst_over_tasks() -> None:
    dense = {"easy": [1.0] * 10, "hard": [0.5] * 20}
    ours = {"easy": [1.0] * 10, "hard": [0.25] * 20, "other": [0.0]}
    found = task_differences(ours, dense)
    assert found.tasks == {"easy": exact(0.0), "hard": exact(-25.0)}
    assert found.mean.value == pytest.approx(-12.5)
    assert (found.worst_task, found.worst) == ("hard", exact(-25.0))
    with pytest.raises(ValueError, match="no task"):
        task_differences({}, {})


def test_worst_bound_counts_every_task() -> None:
    """The more tasks of pure noise, the lower the bound of the worst, while that of the mean closes in on 0."""
    rng = np.random.default_rng(2)
    noise = {f"task{i}": rng.normal(0, 0.1, size=30) for i in range(12)}
    dense = {name: [0.5] * 30 for name in noise}
    ours = {name: list(0.5 + values) for name, values in noise.items()}
    one = task_differences({"task0": ours["task0"]}, {"task0": dense["task0"]})
    many = task_differences(ours, dense)
    assert many.worst.least < one.worst.least
    assert many.mean.high - many.mean.low < (one.mean.high - one.mean.low) / 2


def test_resampled_means_are_those_of_drawn_rows() -> None:
    values = np.arange(12.0).reshape(6, 2) ** 2
    draws = resampled_means(values, np.random.default_rng(0), draws=4000)
    assert draws.shape == (4000, 2)
    np.testing.assert_allclose(draws.mean(axis=0), values.mean(axis=0), rtol=0.03)
    np.testing.assert_allclose(draws.var(axis=0), values.var(axis=0) / 6, rtol=0.1)


def differences(deltas: dict[str, list[float]]) -> object:
    dense = {name: [0.8] * len(values) for name, values in deltas.items()}
    return task_differences({n: [0.8 + d / 100 for d in values] for n, values in deltas.items()}, dense)


@pytest.mark.parametrize(
    ("deltas", "nll", "reasons"),
    [
        ({"a": [-0.4] * 4, "b": [-0.5] * 4}, 0.5, []),
        ({"a": [2.0] * 4, "b": [3.0] * 4}, -1.0, []),
        ({"a": [-0.6] * 4, "b": [-0.6] * 4}, 0.1, ["mean over tasks"]),
        ({"a": [0.5] * 4, "b": [-1.2] * 4}, 0.1, ["worst task (b)"]),
        ({"a": [0.0] * 4}, 0.51, ["NLL"]),
        ({"a": [-9.0] * 4}, float("nan"), ["mean over tasks", "worst task (a)", "NLL"]),
    ],
)
def test_rule(deltas: dict[str, list[float]], nll: float, reasons: list[str]) -> None:
    verdict = judge(differences(deltas), exact(nll), {name: len(values) for name, values in deltas.items()})
    assert [reason.split(":")[0] for reason in verdict.reasons] == reasons
    assert verdict.meets == (not reasons)
    assert all(is_one_sentence(reason) for reason in verdict.reasons)
    assert not verdict.proven, "four prompts prove nothing"


def test_bounds_decide_and_not_means() -> None:
    noisy = differences({"a": [-20.0] + [0.1] * 199})
    assert noisy.mean.value == pytest.approx(-0.0005)
    assert not judge(noisy, Interval(0.4, 0.2, 0.7, 0.25, 0.6), {"a": 200}).meets
    assert judge(noisy, exact(0.4), {"a": 200}).meets
    assert not judge(differences({"a": [-40.0] * 2 + [0.4] * 198}), exact(0.0), {"a": 200}).meets


def test_a_verdict_is_proven_where_prompts_are_enough() -> None:
    none_lost = differences({"a": [0.0] * 300, "b": [0.0] * 300})
    assert judge(none_lost, exact(0.0), {"a": 300, "b": 300}).proven
    assert not judge(none_lost, exact(0.0), {"a": 300, "b": 200}).proven
    assert resolvable_points(299) <= 1.0 < resolvable_points(298)
    assert resolvable_points(1) == pytest.approx(95.0)


def test_without_a_task_nothing_is_met() -> None:
    verdict = judge(None, exact(0.0), {})
    assert not verdict.meets
    assert is_one_sentence(verdict.reasons[0])


def test_tasks_count_where_dense_scores_half() -> None:
    assert counted_tasks({"half": [1.0, 0.0], "less": [0.9, 0.0], "all": [1.0]}) == ["all", "half"]


def test_the_least_density_below_half_that_meets_is_chosen() -> None:
    good, bad = judge(differences({"a": [0.0] * 4}), exact(0.0), {"a": 4}), judge(None, exact(0.0), {})
    densities = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.6}
    assert choose({"a": bad, "b": good, "c": good}, densities) == "b"
    assert choose({"a": bad, "d": good}, densities) is None
    assert choose({}, {}) is None
