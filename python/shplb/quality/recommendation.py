# SPDX-License-Identifier: Apache-2.0
"""Which budgets to serve, or dense: a rule over paired differences to dense, written in docs/algorithms.md.

1. A candidate *keeps quality* if the upper end of the 95 % interval of its text NLL over dense, paired window by
   window, is no more than the tolerance, and its retrieval answers are not worse: of the prompts that only one of the
   two answers right, dense's share is not beyond chance (exact one-sided sign test, 5 %), and the net loss is at most
   one prompt in ten.
2. Of those, the ones of the least asked density count: less attention is what sparse prefill is for.
3. Among them, the one of least text NLL, but the default budgets where the two can't be told apart (the 95 % interval
   of their paired difference holds 0).
4. Dense where none keeps quality, or where prompts of this length are predicted to be no faster sparse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb

import numpy as np

from shplb.quality.measurement import Sample

CONFIDENCE = 0.95
_MOST_LOST = 0.1  # net share of answers


@dataclass(frozen=True)
class Row:
    """A candidate against dense. Intervals are half widths at 95 %; NLL in nats per token."""

    name: str
    asked: float
    computed_density: float
    is_default: bool
    nll_over_dense: float
    nll_interval: float
    answers_right: int
    answers_lost: int
    answers_won: int
    keeps_quality: bool


@dataclass(frozen=True)
class Recommendation:
    """``name`` and ``asked`` density of the candidate to serve; None for dense. ``why`` is one sentence."""

    name: str | None
    asked: float | None
    why: str


def compare(
    name: str, asked: float, computed: float, sample: Sample, dense: Sample, *, tolerance: float, is_default: bool
) -> Row:
    """Paired differences, and whether quality is kept."""
    over, half = paired_interval(sample.windows - dense.windows)
    lost = int(np.sum(dense.right & ~sample.right))
    won = int(np.sum(sample.right & ~dense.right))
    return Row(
        name=name,
        asked=asked,
        computed_density=computed,
        is_default=is_default,
        nll_over_dense=over,
        nll_interval=half,
        answers_right=int(sample.right.sum()),
        answers_lost=lost,
        answers_won=won,
        keeps_quality=over + half <= tolerance and keeps_answers(lost, won, len(dense.right)),
    )


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t); an infinite one for fewer than two windows."""
    from scipy.stats import t  # type: ignore[import-untyped]

    count = len(differences)
    if count < 2:
        return float(differences.mean()) if count else 0.0, float("inf")
    error = float(differences.std(ddof=1)) / count**0.5
    return float(differences.mean()), float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error


def keeps_answers(lost: int, won: int, prompts: int) -> bool:
    """Exact one-sided sign test over the prompts that only one of the two answers right, and the net loss."""
    discordant = lost + won
    chance = sum(comb(discordant, k) for k in range(lost, discordant + 1)) / 2**discordant
    return chance > 1 - CONFIDENCE and lost - won <= _MOST_LOST * prompts


def recommend(
    rows: list[Row], samples: Mapping[tuple[str, float], Sample], *, pays: Mapping[float, bool]
) -> Recommendation:
    """Apply the rule. ``samples`` by (name, asked density); ``pays``: by asked density, whether sparse is predicted to
    be faster at the compared length."""
    kept = [row for row in rows if row.keeps_quality]
    faster = [row for row in kept if pays[row.asked]]
    if not kept:
        return Recommendation(None, None, "no budgets keep quality within the tolerance at the densities compared.")
    if not faster:
        return Recommendation(None, None, "sparse is not predicted to be faster at this length.")
    least = min(row.asked for row in faster)
    group = [row for row in faster if row.asked == least]
    best = min(group, key=lambda row: row.nll_over_dense)
    default = next((row for row in group if row.is_default), None)
    if default is None or default == best:
        why = f"least text NLL of {len(group)} that keep quality at the least density that any keeps it at."
        return Recommendation(best.name, least, why)
    mean, half = paired_interval(samples[default.name, least].windows - samples[best.name, least].windows)
    if mean - half <= 0.0:
        why = f"the default, which can't be told apart from {best.name} ({mean:+.4f} ± {half:.4f} nats)."
        return Recommendation(default.name, least, why)
    why = f"better than the default by {mean:.4f} ± {half:.4f} nats."
    return Recommendation(best.name, least, why)
