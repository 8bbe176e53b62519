# SPDX-License-Identifier: Apache-2.0
"""Means that follow what is served now."""

import numpy as np

#: A value counts for as much as the ones before it until there are so many; then old ones fade.
_MEMORY = 16


class FadingMean:
    """Attributes: value: float64, of the shape of what is added, NaN before; count: values so far."""

    def __init__(self) -> None:
        self.count = 0
        self.value = np.array(np.nan)

    def add(self, value: np.ndarray) -> None:
        self.count += 1
        if self.count == 1:
            self.value = value
            return
        self.value = self.value + (value - self.value) / min(self.count, _MEMORY)
