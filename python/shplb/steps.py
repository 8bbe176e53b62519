# SPDX-License-Identifier: Apache-2.0
"""Densities in whole steps: what a search over densities tries."""

from collections.abc import Callable

#: Steps of 1/10000, finer than a page of any context up to 640K tokens.
STEPS = 10_000


def first_step(reached: Callable[[float], bool]) -> int:
    """Least k in [1, STEPS] for which ``reached(k / STEPS)``, which is true at k = STEPS and stays true once it is."""
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle / STEPS) else (middle, high)
    return high
