# SPDX-License-Identifier: Apache-2.0
"""Draw the result of bench_quality.py: density against what it costs and how long a prompt takes, per length.

    python bench/quality_chart.py bench/results/quality.json bench/results/quality_32k.json --out docs/quality.svg

Needs matplotlib. One line per length: NLL over dense, mean score and worst task against dense, time to the first
token; bars are 95 % intervals, the shaded band is what the rule allows.
"""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from quality.variants import DENSE, split_ranks
from quality.verdict import MOST_MEAN_LOSS, MOST_NLL_LOSS, MOST_WORST_LOSS
from quality_tables import rows_of

from shplb.container import write_atomically

#: (key of the row, label, band that the rule allows or None)
_PANELS = (
    ("nll_over_dense_percent", "NLL over dense, %", (None, MOST_NLL_LOSS)),
    ("mean_delta", "mean score - dense, points", (-MOST_MEAN_LOSS, None)),
    ("worst_delta", "worst task - dense, points", (-MOST_WORST_LOSS, None)),
    ("ttft_ms", "time to first token, ms", (None, None)),
)


def series_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows but dense by what chooses pages, each in order of density."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["measured_density"] if row["name"] != DENSE else 1.0):
        if row["name"] != DENSE:
            name, ranks = split_ranks(row["name"])
            found.setdefault(name.rpartition("@")[0] + (f", {ranks} ranks" if ranks else ""), []).append(row)
    return found


def draw_panel(axes: Any, rows: list[dict[str, Any]], key: str, label: str, band: tuple[float | None, ...]) -> None:
    """One figure per row against computed density; nothing where no row has it."""
    if all(row.get(key) is None for row in rows):
        axes.set_axis_off()
        return
    for name, own in series_of(rows).items():
        own = [row for row in own if row.get(key) is not None]
        density = [row["measured_density"] for row in own]
        if key == "ttft_ms":
            axes.plot(density, [row[key] for row in own], marker="o", label=name)
            continue
        values = [row[key]["value"] for row in own]
        low = [row[key]["value"] - row[key]["low"] for row in own]
        high = [row[key]["high"] - row[key]["value"] for row in own]
        # The worst task of resampled prompts is worse in the mean, so the interval may lie beside the value.
        bars = [[max(0.0, x) for x in low], [max(0.0, x) for x in high]]
        axes.errorbar(density, values, yerr=bars, marker="o", capsize=3, label=name)
    for row in rows:
        if row["name"] == DENSE and key == "ttft_ms" and row[key] is not None:
            axes.axhline(row[key], color="black", linewidth=0.8, label="dense (stock SGLang)")
    if key != "ttft_ms":
        axes.axhline(0.0, color="black", linewidth=0.8)
        bottom, top = axes.get_ylim()
        axes.axhspan(
            bottom if band[0] is None else band[0], top if band[1] is None else band[1], alpha=0.12, color="C2"
        )
        axes.set_ylim(bottom, top)
    axes.set_xlabel("computed density")
    axes.set_ylabel(label)


def chart(*results: dict[str, Any]) -> bytes:
    """The whole chart as SVG; of runs of one model at different lengths."""
    all_rows, first = rows_of(results), results[0]
    lengths = sorted({row["tokens"] for row in all_rows})
    is_timed = any(row["ttft_ms"] is not None for row in all_rows)
    panels = [panel for panel in _PANELS if is_timed or panel[0] != "ttft_ms"]
    figure = Figure(figsize=(4.6 * len(panels), 3.6 * len(lengths) + 0.6), layout="constrained")
    grid = figure.subplots(len(lengths), len(panels), squeeze=False)
    for line, tokens in zip(grid, lengths, strict=True):
        rows = [row for row in all_rows if row["tokens"] == tokens]
        for axes, panel in zip(line, panels, strict=True):
            draw_panel(axes, rows, *panel)
        line[0].set_title(f"{first['model']}, {tokens} tokens, {first['device']}", fontsize="medium", loc="left")
    drawn = {name: line for axes in grid.flat for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4, fontsize="small")
    out = io.BytesIO()
    # The same figures give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "shplb"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/quality.svg"))
    args = parser.parse_args()
    write_atomically(args.out, chart(*(json.loads(path.read_text()) for path in args.results)))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
