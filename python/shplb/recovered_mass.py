# SPDX-License-Identifier: Apache-2.0
"""Attention mass that heads recover under their budgets, read off a profile's curves."""

import numpy as np

from shplb.profile import HeadProfile
from shplb.sparsity import SparsityRule, floor_share


class RecoveredMass:
    """Recovered attention mass of the profile's heads, as a function of their budgets."""

    def __init__(self, profile: HeadProfile, rule: SparsityRule) -> None:
        """rule: as served; lengths up to its ``dense_below_tokens`` don't count in :meth:`least_mean`."""
        self._densities = np.concatenate([[0.0], profile.densities])
        curves = np.maximum.accumulate(np.clip(profile.mean_curves("recovery"), 0.0, 1.0), axis=-1)
        # Nothing is left out at density 1, whatever the measurement rounded to.
        curves[..., -1] = 1.0
        self._curves = np.concatenate([np.zeros_like(curves[..., :1]), curves], axis=-1)
        self._real = ~profile.inert
        self._floors = np.array([floor_share(rule, int(length)) for length in profile.lengths])
        self._sparse = profile.lengths > rule.dense_below_tokens
        self._sparse[-1] = True  # longer prompts take its budgets

    def heads(self, budgets: np.ndarray) -> np.ndarray:
        """float64 [num_layers, num_qo_heads, num_lengths], linear between measured densities; budgets: same shape."""
        high = np.clip(np.searchsorted(self._densities, budgets), 1, len(self._densities) - 1)
        low = high - 1
        share = (budgets - self._densities[low]) / (self._densities[high] - self._densities[low])
        before, after = (np.take_along_axis(self._curves, at[..., None], axis=-1)[..., 0] for at in (low, high))
        return np.asarray(before + share * (after - before))

    def served(self, budgets: np.ndarray) -> np.ndarray:
        """The same with budgets raised to the pages that are always kept."""
        return self.heads(np.maximum(budgets, self._floors))

    def means(self, budgets: np.ndarray) -> np.ndarray:
        """float64 [num_lengths]: mean over heads that are not inert."""
        return np.asarray(self.heads(budgets)[self._real].mean(axis=0))

    def least_mean(self, budgets: np.ndarray) -> float:
        """The mean at the length where it is least, of those that are served sparse."""
        return float(self.means(budgets)[self._sparse].min())
