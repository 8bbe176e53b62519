# SPDX-License-Identifier: Apache-2.0
"""Needed density: the least share of the pages with which a head is good enough, read off its curve.

It is density as asked for: on short contexts the always-kept pages alone can be more than that.
"""

from typing import Literal

import numpy as np

from shplb.profile import HeadProfile

Quantity = Literal["recovery", "error"]

#: Recovered attention mass to reach, and share of the mean head's error to fall to.
TARGETS: dict[Quantity, float] = {"recovery": 0.90, "error": 0.10}

# Curves are float32: needed densities that differ by less than this are equal, so that noise doesn't break ties.
_DECIMALS = 6


def needed_density(profile: HeadProfile, curves: np.ndarray, quantity: Quantity, target: float) -> np.ndarray:
    """Density at which every head of ``curves`` reaches ``target``, linear between measured points.

    Both quantities are read as the budget solver reads them: a value worse than one at a lower density counts as
    equal to it.

    *recovery*: the density at which recovery is ``target``; recovery at density 0 is 0.

    *error*: the density at which output error falls to ``target`` times the mean head's error at the smallest
    measured density (on contexts up to about 20K tokens, that of the always-kept pages), at the same length and in the
    same text. It is one level for all heads, since budgets minimise the sum of absolute errors: relative to each head's
    own error, a head that changes nothing would count like one that carries the layer, and its order is noise
    (SmolLM2-135M, texts of 3072 tokens: Spearman correlation between documents 0.5 instead of 0.87). The error at
    density 0 is not in a profile, so a head that is below the level at the smallest density needs that density.

    Args:
        curves: float [..., num_layers, num_qo_heads, num_lengths, num_points], such as ``profile.error`` or
            ``profile.mean_curves("error")``.
        target: in (0, 1], below 1 for ``error``.

    Returns:
        float64 [..., num_layers, num_qo_heads, num_lengths] in [0, 1]; 0 for inert heads, 1 where the target is not
        reached at any density.

    Raises:
        ValueError: target out of range.
    """
    if not 0.0 < target <= 1.0 or (quantity == "error" and target == 1.0):
        interval = "(0, 1]" if quantity == "recovery" else "(0, 1)"
        raise ValueError(f"the target for {quantity} is {target}, expected a share in {interval}.")
    curves, real = curves.astype(np.float64), ~profile.inert
    if quantity == "recovery":
        densities = np.concatenate([[0.0], profile.densities])
        rising = np.concatenate([np.zeros_like(curves[..., :1]), curves], axis=-1)
        needed = _first_reach(rising, densities, np.array(target))
    else:
        mean = curves[..., 0][..., real, :].sum(axis=-2) / max(real.sum(), 1)
        needed = _first_reach(-curves, profile.densities, -target * mean[..., None, None, :])
    return np.asarray(np.where(real[..., None], np.round(needed, _DECIMALS), 0.0))


def _first_reach(curves: np.ndarray, densities: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Least density at which each curve (last axis), made to rise, is ``level``; the first one if it starts there."""
    rising = np.maximum.accumulate(curves, axis=-1)
    level = np.broadcast_to(level, rising.shape[:-1])[..., None]
    reached = rising >= level
    high = np.argmax(reached, axis=-1)[..., None]
    low = np.maximum(high - 1, 0)
    before, after = np.take_along_axis(rising, low, axis=-1), np.take_along_axis(rising, high, axis=-1)
    # Where high is the first point or no point reaches the level, there is no step to divide by.
    share = (level - before) / np.where(high > low, after - before, 1.0)
    found = np.where(high > low, densities[low] + share * (densities[high] - densities[low]), densities[0])
    return np.where(reached.any(axis=-1), found[..., 0], 1.0)
