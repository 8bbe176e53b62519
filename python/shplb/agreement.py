# SPDX-License-Identifier: Apache-2.0
"""How well measurements of the same heads agree: correlations of all pairs, overall and within layers."""

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from shplb.rank_correlation import pearson, spearman

Axis = Literal["documents", "domains", "adjacent lengths", "lengths"]


class Correlation(msgspec.Struct, frozen=True):
    """Over all compared pairs: means and least values; ``where`` names the pair with the least Spearman correlation."""

    spearman: float
    least_spearman: float
    pearson: float
    least_pearson: float
    where: str


class Agreement(msgspec.Struct, frozen=True):
    """How well measurements agree along one axis.

    Attributes:
        pairs: pairs of measurements that were compared.
        pairs_left_out: pairs in which one measurement has the same value for all heads.
        layers: (pair, layer) comparisons behind ``within_layers``.
        layers_left_out: the same count of those with constant values.
        overall: over all heads; None where nothing was compared, and ``reason`` says why.
        within_layers: per pair, the mean over layers of the correlation among the heads of that layer.
    """

    axis: Axis
    pairs: int = 0
    pairs_left_out: int = 0
    layers: int = 0
    layers_left_out: int = 0
    overall: Correlation | None = None
    within_layers: Correlation | None = None
    reason: str | None = None


class Measurements(NamedTuple):
    """Values that may be compared with each other: float64 [measurements, layers, heads], finite.

    labels: one for each measurement; place: what they have in common, for messages.
    """

    labels: list[str]
    values: np.ndarray
    place: str = ""


def compare(axis: Axis, groups: list[Measurements], *, if_none: str) -> Agreement:
    """Correlate all pairs inside each group (for ``adjacent lengths``, neighbours only).

    if_none: the reason to give where the groups hold no pair.
    """
    heads = int(np.prod(groups[0].values.shape[1:])) if groups else 0
    if groups and not heads:
        return Agreement(axis, reason="every head is padding")
    overall: list[tuple[float, float, str]] = []
    within: list[tuple[float, float, str]] = []
    pairs = layers = layers_left_out = 0
    for scores, where in _scores(groups, neighbours=axis == "adjacent lengths"):
        pairs += 1
        known = scores[:, 1:][:, ~np.isnan(scores[0, 1:])]
        layers += known.shape[1]
        layers_left_out += scores.shape[1] - 1 - known.shape[1]
        if not np.isnan(scores[0, 0]):
            overall.append((float(scores[0, 0]), float(scores[1, 0]), where))
        if known.size:
            within.append((float(known[0].mean()), float(known[1].mean()), where))
    if pairs and not overall:
        if_none = "one head only" if heads == 1 else "all heads need the same density"
    return Agreement(
        axis,
        pairs=len(overall),
        pairs_left_out=pairs - len(overall),
        layers=layers,
        layers_left_out=layers_left_out,
        overall=_correlation(overall),
        within_layers=_correlation(within),
        reason=None if overall else if_none,
    )


def _scores(groups: list[Measurements], *, neighbours: bool) -> Iterator[tuple[np.ndarray, str]]:
    """Per pair: float64 [Spearman and Pearson, 1 + num_layers], all heads first, NaN if constant; and its name."""
    for labels, values, place in groups:
        count = len(labels)
        if count < 2:
            continue
        parts = [values.reshape(count, -1), *np.moveaxis(values, 1, 0)]
        matrices = np.array([[spearman(part) for part in parts], [pearson(part) for part in parts]])
        for i, j in pairwise(range(count)) if neighbours else combinations(range(count), 2):
            yield matrices[:, :, i, j], f"{labels[i]} and {labels[j]}{place}"


def _correlation(pairs: list[tuple[float, float, str]]) -> Correlation | None:
    """pairs: (Spearman, Pearson, which pair)."""
    if not pairs:
        return None
    ranks, values, where = zip(*pairs, strict=True)
    return Correlation(
        spearman=float(np.mean(ranks)),
        least_spearman=min(ranks),
        pearson=float(np.mean(values)),
        least_pearson=min(values),
        where=where[int(np.argmin(ranks))],
    )
