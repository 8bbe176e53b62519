# SPDX-License-Identifier: Apache-2.0
"""Shares as users give them."""

from typing import Any


def parse_share(value: Any, name: str, of: str) -> float:
    """A number in (0, 1], or a string that holds one; else ValueError that says what ``name`` is a share ``of``."""
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{name} is {value!r}, expected a share of {of} in (0, 1]")
    return share
