# SPDX-License-Identifier: Apache-2.0
"""The picture that explains placement: per layer, what ranks compute and how long they wait for the slowest."""

import numpy as np

from shplb.rank_loads import RankLoads, imbalance
from shplb.report.svg import Scale, Svg, draw_axes

_WIDTH, _PANEL, _LEFT, _TOP, _BOTTOM = 960, 190, 70, 48, 40

#: In narrower bars the rings of the ranks would hide what they mark.
_RING_WIDTH = 10


def draw_loads(loads: RankLoads) -> Svg:
    """Panels on one scale: stock's contiguous sharding above, the plan's placement below it, replicas below that."""
    top = float(max(*(ranks.max() for _, ranks in loads.rows), 1))
    svg = Svg(_WIDTH, len(loads.rows) * (_PANEL + _TOP + _BOTTOM), "Rank loads per layer before and after placement")
    when = {"contiguous": "before: contiguous", "placed": "after: placed", "replicas": "with copies: replicas"}
    for index, (name, ranks) in enumerate(loads.rows):
        base = index * (_PANEL + _TOP + _BOTTOM) + _TOP + _PANEL
        x = Scale(-0.5, len(ranks) - 0.5, _LEFT, _WIDTH - 10)
        y = Scale(0.0, top, base, base - _PANEL)
        step = max(1, len(ranks) // 16)
        draw_axes(
            svg,
            x,
            y,
            x_label="layer" if index == len(loads.rows) - 1 else "",
            y_label="load per rank (query block, page pairs)",
            x_ticks=[(layer, str(layer)) for layer in range(0, len(ranks), step)],
            y_ticks=[(value, _short(value)) for value in y.ticks(4)],
        )
        svg.text(_LEFT, base - _PANEL - 28, f"{when[name]}, imbalance {imbalance(ranks):.3f}", "heading")
        _draw_bars(svg, x, y, loads, ranks)
    return svg


def _draw_bars(svg: Svg, x: Scale, y: Scale, loads: RankLoads, ranks: np.ndarray) -> None:
    width = (x.end - x.start) / len(ranks) * 0.72
    ratios, means = loads.layer_imbalance(ranks), ranks.mean(axis=1)
    for layer, row in enumerate(ranks):
        left, mean, most = x(layer) - width / 2, y(means[layer]), y(row.max())
        shown = ", ".join(f"rank {rank} {load:.6g}" for rank, load in enumerate(row.tolist()))
        hint = f"layer {layer}: {shown}; max/mean {ratios[layer]:.3f}; lower bound {loads.bound[layer]:.6g}"
        group = svg.add("g", title=hint)
        svg.add("rect", group, x=left, y=mean, width=width, height=y.start - mean, class_="work")
        svg.add("rect", group, x=left, y=most, width=width, height=mean - most, class_="wait")
        for load in row.tolist() if width >= _RING_WIDTH else ():
            svg.add("circle", group, cx=x(layer), cy=y(load), r=3, class_="dot")
        bound = y(float(loads.bound[layer]))
        svg.add("line", group, x1=left - 1, x2=left + width + 1, y1=bound, y2=bound, class_="bound")


def _short(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
