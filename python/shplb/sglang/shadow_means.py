# SPDX-License-Identifier: Apache-2.0
"""What shadow checks found, layer by layer, as means that follow what is served now."""

from typing import Any

import numpy as np

#: A check counts for as much as the ones before it until there are so many; then old ones fade.
_MEMORY = 16


class ShadowMeans:
    """Attributes: float64 [num_layers] each, over all heads and ranks.

    lost: attention mass on pages that were not kept; error: norm of the output's error over that of the dense output;
    drift: recovered mass less what the profile recovered under the same budgets, NaN where the plan does not hold that.
    """

    def __init__(self) -> None:
        self.checks = 0
        self.lost = self.error = self.drift = np.empty(0)

    def add(self, sums: np.ndarray) -> None:
        """One check, float64 [num_layers, 5], sums over heads: recovered mass, squared error, squared norm of the dense
        output, expected mass (NaN: not known), heads."""
        recovered, error, norm, expected, heads = sums.T
        heads = np.maximum(heads, 1.0)
        mine = (1.0 - recovered / heads, np.sqrt(error / np.maximum(norm, 1e-30)), (recovered - expected) / heads)
        self.checks += 1
        if self.checks == 1:
            self.lost, self.error, self.drift = mine
            return
        weight = 1.0 / min(self.checks, _MEMORY)
        before = self.lost, self.error, self.drift
        self.lost, self.error, self.drift = (
            old + weight * (new - old) for old, new in zip(before, mine, strict=True)
        )  # fmt: skip

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
