# SPDX-License-Identifier: Apache-2.0
"""What shadow checks found, layer by layer, as means that follow what is served now."""

from typing import Any

import numpy as np

from shplb.sglang.fading_mean import FadingMean


class ShadowMeans:
    """Attributes: float64 [num_layers] each, over all heads and ranks.

    lost: attention mass on pages that were not kept; error: norm of the output's error over that of the dense output;
    drift: recovered mass less what the profile recovered under the same budgets, NaN where the plan does not hold that.
    """

    def __init__(self) -> None:
        self._means = FadingMean()
        self.lost = self.error = self.drift = np.empty(0)

    @property
    def checks(self) -> int:
        return self._means.count

    def add(self, sums: np.ndarray) -> None:
        """One check, float64 [num_layers, 5], sums over heads: recovered mass, squared error, squared norm of the dense
        output, expected mass (NaN: not known), heads."""
        recovered, error, norm, expected, heads = sums.T
        heads = np.maximum(heads, 1.0)
        mine = (1.0 - recovered / heads, np.sqrt(error / np.maximum(norm, 1e-30)), (recovered - expected) / heads)
        self._means.add(np.stack(mine))
        self.lost, self.error, self.drift = self._means.value

    def report(self) -> dict[str, Any]:
        if not self.checks:
            return {"shadow_checks": 0}
        known = bool(np.all(np.isfinite(self.drift)))
        return {
            "shadow_checks": self.checks,
            "shadow_lost_mass": self.lost.tolist(),
            "shadow_output_error": self.error.tolist(),
            "shadow_mass_drift": self.drift.tolist() if known else None,
        }
