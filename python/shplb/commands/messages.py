# SPDX-License-Identifier: Apache-2.0
"""What commands say beside their result."""

from rich.console import Console


def say(text: str) -> None:
    """A line on stderr; brackets in file names are no markup."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)
