# SPDX-License-Identifier: Apache-2.0
"""What a stability report looks like in a terminal."""

from rich.console import Console
from rich.table import Table

from shplb.agreement import Correlation
from shplb.stability import NAMES, NeededDensity, Stability


def print_stability(stability: Stability, console: Console) -> None:
    """Spread of needed density, a table of correlations, the verdict, and the warning if there is one."""
    lines = [_spread(part) for part in stability.needed if part.median is not None]
    _print(lines, console)
    console.print(_table(stability))
    _print([*_left_out(stability), *_least_alike(stability), stability.verdict], console)
    if stability.warning:
        _print([f"warning: {stability.warning}"], console, style="yellow")


def _print(lines: list[str], console: Console, style: str | None = None) -> None:
    for line in lines:
        # Document names are the user's: brackets in them are no markup.
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def _spread(part: NeededDensity) -> str:
    goal = f"recovery {part.target:g}" if part.quantity == "recovery" else f"{part.target:g} of the mean head's error"
    return (
        f"needed density for {goal} at {part.length_tokens} tokens: "
        f"least {part.least:.3f}, median {part.median:.3f}, most {part.most:.3f}"
    )


def _table(stability: Stability) -> Table:
    table = Table("for", title="stability of needed density: mean correlation (least)")
    table.add_column("across", no_wrap=True)
    for column in ("pairs", "Spearman", "Pearson", "Spearman in layers", "Pearson in layers"):
        table.add_column(column, justify="right")
    for part in stability.needed:
        for item in part.agreements:
            cells = (*_cells(item.overall), *_cells(item.within_layers))
            table.add_row(NAMES[part.quantity], item.axis, str(item.pairs), *cells)
        table.add_section()
    return table


def _cells(found: Correlation | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    return f"{found.spearman:.2f} ({found.least_spearman:.2f})", f"{found.pearson:.2f}"


def _left_out(stability: Stability) -> list[str]:
    items = [item for part in stability.needed for item in part.agreements]
    pairs, layers = sum(item.pairs_left_out for item in items), sum(item.layers_left_out for item in items)
    if not layers and not pairs:
        return []
    all_pairs, all_layers = pairs + sum(item.pairs for item in items), layers + sum(item.layers for item in items)
    return [
        f"left out, since all heads need the same there: {pairs} of {all_pairs} pairs, {layers} of {all_layers} "
        "layers in pairs"
    ]


def _least_alike(stability: Stability) -> list[str]:
    found = [
        (item.overall, NAMES[part.quantity])
        for part in stability.needed
        for item in part.agreements
        if item.overall is not None
    ]
    found.sort(key=lambda pair: pair[0].least_spearman)
    return [f"least alike: {each.where} ({name}, Spearman {each.least_spearman:.2f})" for each, name in found[:1]]
