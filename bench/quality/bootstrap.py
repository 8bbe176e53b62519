# SPDX-License-Identifier: Apache-2.0
"""Paired bootstrap (Efron 1979): how far a difference to dense may be off by the chance of the prompts."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

DRAWS = 10_000


class Interval(msgspec.Struct, frozen=True):
    """A difference to dense: the measured one and a two-sided 95 % percentile interval.

    least, most: one-sided bounds, 95 % each.
    """

    value: float
    low: float
    high: float
    least: float
    most: float


class Differences(msgspec.Struct, frozen=True):
    """Of several tasks, in points (0 to 100): their mean, the worst of them, which has a name, and each."""

    mean: Interval
    worst: Interval
    worst_task: str
    tasks: dict[str, Interval]


def interval_of(value: float, draws: np.ndarray) -> Interval:
    low, least, most, high = np.quantile(draws, [0.025, 0.05, 0.95, 0.975])
    return Interval(value, float(low), float(high), float(least), float(most))


def resampled_means(values: np.ndarray, rng: np.random.Generator, draws: int = DRAWS) -> np.ndarray:
    """Means of ``draws`` samples with replacement of the rows of ``values`` ``[n, ...]``, each of ``n`` rows."""
    counts = rng.multinomial(len(values), np.full(len(values), 1.0 / len(values)), size=draws)
    return counts @ values / len(values)


def task_differences(
    scores: Mapping[str, Sequence[float]], dense: Mapping[str, Sequence[float]], seed: int = 0
) -> Differences:
    """Variant minus dense, prompt by prompt; prompts are drawn again within every task. ValueError without tasks.

    The worst of several noisy tasks is below the true worst in the mean, so its bound errs on the safe side.
    """
    if not dense:
        raise ValueError("there is no task to compare; give at least one")
    rng = np.random.default_rng(seed)
    points = {name: 100.0 * (np.array(scores[name]) - np.array(dense[name])) for name in sorted(dense)}
    draws = {name: resampled_means(values, rng) for name, values in points.items()}
    means = {name: float(values.mean()) for name, values in points.items()}
    worst_task = min(means, key=means.__getitem__)
    table = np.array(list(draws.values()))
    return Differences(
        mean=interval_of(float(np.mean(list(means.values()))), table.mean(axis=0)),
        worst=interval_of(means[worst_task], table.min(axis=0)),
        worst_task=worst_task,
        tasks={name: interval_of(means[name], each) for name, each in draws.items()},
    )


def nll_difference(
    nll: Mapping[str, Sequence[float]], dense: Mapping[str, Sequence[float]], seed: int = 0
) -> tuple[Interval, Interval]:
    """(variant minus dense in nats a token, the same in percent of dense's); windows are paired, and drawn in texts."""
    if not dense:
        raise ValueError("there is no text to compare; give at least one")
    rng = np.random.default_rng(seed)
    pairs = [np.stack([np.array(nll[name]), np.array(dense[name])], axis=1) for name in sorted(dense)]
    weights = np.array([len(each) for each in pairs], dtype=np.float64)
    weights /= weights.sum()
    draws = sum(weight * resampled_means(each, rng) for weight, each in zip(weights, pairs, strict=True))
    ours, theirs = np.concatenate(pairs).mean(axis=0)
    over = draws[:, 0] - draws[:, 1]
    return (
        interval_of(float(ours - theirs), over),
        interval_of(float(100 * (ours / theirs - 1)), 100 * over / draws[:, 1]),
    )
