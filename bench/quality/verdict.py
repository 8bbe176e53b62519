# SPDX-License-Identifier: Apache-2.0
"""The rule by which a density counts as free of quality loss, and the density that is chosen by it."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from quality.bootstrap import Differences, Interval

# Points of 100 for tasks, percent for NLL: 95 % bounds of the loss against dense that a density may reach.
MOST_MEAN_LOSS = 0.5
MOST_WORST_LOSS = 1.0
MOST_NLL_LOSS = 0.5
#: Tasks count where dense attention itself scores as much.
LEAST_DENSE_SCORE = 0.5
#: Above it, sparse attention is not worth its name, and dense is the default.
MOST_DENSITY = 0.5


class Verdict(msgspec.Struct, frozen=True):
    """Whether one variant meets the rule at one length.

    meets: by the bounds of the prompts that were asked. reasons: a sentence for every limit that is exceeded.
    resolution_points: the smallest share of prompts (mean over tasks, one task) whose total failure would be seen with
    95 % probability; where it exceeds a limit, no loss was seen, but one beyond the limit is not excluded.
    proven: ``meets``, and the resolution is within the limits.
    """

    meets: bool
    proven: bool
    reasons: list[str]
    resolution_points: tuple[float, float]


def counted_tasks(dense: Mapping[str, Sequence[float]]) -> list[str]:
    """Names of the tasks at which dense attention scores at least half."""
    return sorted(name for name, scores in dense.items() if float(np.mean(scores)) >= LEAST_DENSE_SCORE)


def judge(differences: Differences | None, nll_percent: Interval, prompts: Mapping[str, int]) -> Verdict:
    """Apply the rule. ``differences`` of the counted tasks, None where there is none; ``prompts`` per counted task."""
    if differences is None or not prompts:
        return Verdict(False, False, ["dense attention solves no task here, so nothing can be judged."], (100.0, 100.0))
    bounds = {
        "mean over tasks": (-differences.mean.least, MOST_MEAN_LOSS, "points"),
        f"worst task ({differences.worst_task})": (-differences.worst.least, MOST_WORST_LOSS, "points"),
        "NLL": (nll_percent.most, MOST_NLL_LOSS, "%"),
    }
    reasons = [
        f"{name}: a loss of {bound:.2f} {unit} is not excluded, {limit} may not be exceeded."
        for name, (bound, limit, unit) in bounds.items()
        if not bound <= limit
    ]
    resolution = resolvable_points(sum(prompts.values())), resolvable_points(min(prompts.values()))
    fine = resolution[0] <= MOST_MEAN_LOSS and resolution[1] <= MOST_WORST_LOSS
    return Verdict(not reasons, not reasons and fine, reasons, resolution)


def resolvable_points(prompts: int) -> float:
    """Points p such that a failure of p % of all prompts shows in ``prompts`` of them with 95 % probability."""
    return float(100.0 * (1.0 - 0.05 ** (1.0 / prompts)))


def choose(verdicts: Mapping[str, Verdict], densities: Mapping[str, float]) -> str | None:
    """The name of the variant of least density among those that meet the rule below 0.5; None: dense is the default."""
    found = [name for name, verdict in verdicts.items() if verdict.meets and densities[name] < MOST_DENSITY]
    return min(found, key=lambda name: (densities[name], name), default=None)
