# SPDX-License-Identifier: Apache-2.0
"""What solving budgets and placement together gained, as a table."""

from rich import box
from rich.console import Console
from rich.table import Table

from shplb.balance_gain import BalanceGain, Side


def print_gain(gain: BalanceGain | None, console: Console) -> None:
    """Apart, together, and apart at the density that comes down to the same error; nothing where nothing was gained."""
    if gain is None:
        return
    console.print("budgets and placement solved apart and together, by the profile:", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("solved", no_wrap=True)
    for name in ("mean\ndensity", "output error\nover apart", "slowest rank\nover apart", "attention\nms"):
        table.add_column(name, justify="right", no_wrap=True)

    def row(name: str, side: Side) -> None:
        error = side.error / gain.apart.error if gain.apart.error else 1.0
        work = side.slowest_pages / max(gain.apart.slowest_pages, 1)
        table.add_row(name, f"{side.mean_density:.4f}", f"{error:.4f}", f"{work:.4f}", f"{side.attention_ms:.3f}")

    row("apart", gain.apart)
    row("together", gain.together)
    if gain.same_error is not None:
        row("apart, for the same error", gain.same_error)
    console.print(table)
    if gain.together.attention_ms > gain.apart.attention_ms:
        console.print(
            "together is predicted to be slower for this prompt: a single long page list, which only one SM computes, "
            "takes longer than the rank's share of the sum",
            highlight=False,
        )
