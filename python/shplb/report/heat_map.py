# SPDX-License-Identifier: Apache-2.0
"""Layers x query heads as coloured cells. The page's script can sort heads and change the length; a cell carries all
of its values and colours, so that the script computes nothing."""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np

from shplb.model import ModelShape
from shplb.plan import ServingPlan, expand_groups
from shplb.report.svg import Svg

NUM_COLOURS = 16
#: Above so many cells a map holds one length only and says less on hover, to stay small.
_MANY_CELLS = 8192
_MAX_LENGTHS = 4
_LEFT, _TOP, _LEGEND = 46, 26, 62


def chosen_lengths(model: ModelShape, lengths: np.ndarray) -> list[int]:
    """Indices into ``lengths`` that a map offers, spread over all, the longest last."""
    if _is_large(model):
        return [len(lengths) - 1]
    return sorted({round(index) for index in np.linspace(0, len(lengths) - 1, _MAX_LENGTHS)})


def _is_large(model: ModelShape) -> bool:
    return model.num_layers * model.num_qo_heads > _MANY_CELLS


class ColourScale:
    """Shares in (0, 1] to colour numbers, logarithmic; the lowest colour takes everything below its start."""

    def __init__(self, values: np.ndarray) -> None:
        least = float(values.min()) if values.size else 1.0
        self.octaves = int(np.clip(math.ceil(-math.log2(max(least, 1e-9)) - 1e-9), 2, 10))

    def colour(self, share: float) -> int:
        position = 1.0 + math.log2(max(share, 1e-9)) / self.octaves
        return min(max(int(position * NUM_COLOURS), 0), NUM_COLOURS - 1)


def draw_heat_map(plan: ServingPlan, values: np.ndarray, lengths: Sequence[int], what: str) -> Svg:
    """Draw ``values`` at the last of ``lengths``.

    Args:
        values: float64 [num_layers, num_qo_heads, len(lengths)], shares in (0, 1], heads in the model's own order.
        lengths: tokens, ascending.
        what: name of the value, with its unit.
    """
    model = plan.model
    cell = float(np.clip(900 / model.num_qo_heads, 6, 26))
    row_height = 15.0 if model.num_layers <= 48 else 10.0
    width = max(_LEFT + cell * model.num_qo_heads + 10, 380)
    height = _TOP + row_height * model.num_layers + _LEGEND
    svg = Svg(width, height, f"{what}, per layer and query head, at {lengths[-1]} tokens")
    real = [head for head in range(model.num_qo_heads) if head not in model.inert_qo_heads]
    colours = ColourScale(values[:, real])
    step = max(1, -(-model.num_qo_heads // 16))
    for head in range(0, model.num_qo_heads, step):
        svg.text(_LEFT + (head + 0.5) * cell, _TOP - 8, head, "tick middle head-number")
    svg.text(0, _TOP - 8, "layer", "label")
    for layer in range(model.num_layers):
        at = _TOP + layer * row_height
        if layer % max(1, model.num_layers // 20) == 0:
            svg.text(_LEFT - 8, at + row_height * 0.75, layer, "tick end")
        row = svg.add("g", class_="row", transform=f"translate(0 {at:g})")
        _draw_row(svg, row, plan, layer, values[layer], colours, (cell, row_height))
    _draw_rank_borders(svg, plan, cell, row_height)
    _draw_legend(svg, colours, height - _LEGEND + 14, min(width - _LEFT - 20, 420), what)
    return svg


def _draw_row(
    svg: Svg,
    row: ElementTree.Element,
    plan: ServingPlan,
    layer: int,
    values: np.ndarray,
    colours: ColourScale,
    size: tuple[float, float],
) -> None:
    model, inert = plan.model, plan.model.inert_qo_heads
    order = expand_groups(plan.physical_to_logical[layer], model.group_size).tolist()
    place = {head: position for position, head in enumerate(dict.fromkeys(order))}
    ranks: dict[int, list[str]] = {}
    for position, head in enumerate(order):
        ranks.setdefault(head, []).append(str(position // (plan.num_slots * model.group_size)))
    brief = _is_large(model)
    for head in range(model.num_qo_heads):
        owner = "" if brief else f", KV group {head // model.group_size}, rank {' and '.join(ranks[head])}"
        name = f"layer {layer}, head {head}{owner}"
        box = {"x": _LEFT + head * size[0], "width": size[0] - 1, "height": size[1] - 1, "data_p": place[head]}
        if head in inert:
            svg.add("rect", row, **box, class_="inert", title=f"{name}: padding")
            continue
        shares = values[head].tolist()
        shown, levels = [f"{share:.4g}" for share in shares], [colours.colour(share) for share in shares]
        many = {"data_v": " ".join(shown), "data_c": " ".join(map(str, levels))} if len(levels) > 1 else {}
        svg.add("rect", row, **box, **many, class_=f"c{levels[-1]}", title=f"{name}: {shown[-1]}")


def _draw_rank_borders(svg: Svg, plan: ServingPlan, cell: float, row_height: float) -> None:
    """Lines between ranks; they mean something only while heads are shown as placed, so the script shows them."""
    per_rank = plan.model.num_qo_heads // plan.tp_size
    # With replicas, heads stand where their first copy is, and ranks have no border.
    for rank in range(1, plan.tp_size) if not plan.replicas else ():
        at = _LEFT + rank * per_rank * cell - 0.5
        svg.line(at, _TOP - 4, at, _TOP + plan.model.num_layers * row_height + 4, "rank-border")


def _draw_legend(svg: Svg, colours: ColourScale, top: float, width: float, what: str) -> None:
    step = width / NUM_COLOURS
    for colour in range(NUM_COLOURS):
        svg.add("rect", x=_LEFT + colour * step, y=top, width=step, height=10.0, class_=f"c{colour}")
    stride = max(1, colours.octaves // 5)
    for octave in range(0, colours.octaves + 1, stride):
        share = 2.0**-octave
        at = _LEFT + width * (1 - octave / colours.octaves)
        svg.text(at, top + 24, f"1/{1 / share:.0f}" if octave else "1", "tick middle")
    svg.text(_LEFT, top + 42, what, "label")
