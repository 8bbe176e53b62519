# SPDX-License-Identifier: Apache-2.0
"""A small SVG writer: elements, scales and axes. The tree is ElementTree's, so text and attributes are escaped."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

#: What XML 1.0 can't hold; ElementTree would write it and no parser would read it.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: object) -> str:
    """``str(text)`` with characters that XML can't hold replaced by U+FFFD."""
    return _NOT_XML.sub("\ufffd", str(text))


def number(value: float) -> str:
    """Coordinates with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


class Svg:
    """One figure. It scales to the width it is given, up to its own; colours come from the page's style sheet."""

    def __init__(self, width: float, height: float, label: str) -> None:
        """width, height: pixels at full size; label: what a screen reader says."""
        self.width, self.height = width, height
        # Without xmlns: inside HTML the parser knows SVG by its tag, and the page stays free of addresses.
        self.root = ElementTree.Element(
            "svg",
            {
                "viewBox": f"0 0 {number(width)} {number(height)}",
                "role": "img",
                "aria-label": clean(label),
                "style": f"max-width:{number(width)}px",
            },
        )

    def add(
        self,
        tag: str,
        parent: ElementTree.Element | None = None,
        *,
        text: object = None,
        title: object = None,
        **attributes: object,
    ) -> ElementTree.Element:
        """Append an element. ``class_`` stands for class, ``stroke_width`` for stroke-width; title: shown on hover."""
        names = {
            name.rstrip("_").replace("_", "-"): number(value) if isinstance(value, float) else clean(value)
            for name, value in attributes.items()
        }
        element = ElementTree.SubElement(self.root if parent is None else parent, tag, names)
        if text is not None:
            element.text = clean(text)
        if title is not None:
            ElementTree.SubElement(element, "title").text = clean(title)
        return element

    def line(self, x1: float, y1: float, x2: float, y2: float, class_: str) -> ElementTree.Element:
        return self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)

    def text(self, x: float, y: float, text: object, class_: str = "") -> ElementTree.Element:
        return self.add("text", x=float(x), y=float(y), text=text, class_=class_)

    def render(self) -> str:
        return ElementTree.tostring(self.root, encoding="unicode")


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to coordinates in [start, end]; values outside are clipped."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low) if high > low else 0.0
        return float(self.start + (self.end - self.start) * share)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the scale: powers of ten when logarithmic, else steps of 1, 2 or 5."""
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            step = max(1, -(-len(powers) // (count + 2)))
            return [10.0**power for power in powers if power % step == 0]
        width = (self.high - self.low) / count
        if width <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(width))
        step_width = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= width - 1e-12 * power)
        first, last = math.ceil(self.low / step_width - 1e-9), math.floor(self.high / step_width + 1e-9)
        return [index * step_width for index in range(first, last + 1)]


def draw_axes(
    svg: Svg,
    x: Scale,
    y: Scale,
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    y_ticks: Sequence[tuple[float, str]] | None = None,
) -> None:
    """Grid lines, tick labels and axis labels (units included) around the plot that ``x`` and ``y`` span."""
    for value, label in _labelled(y) if y_ticks is None else y_ticks:
        svg.line(x.start, y(value), x.end, y(value), "grid")
        svg.text(x.start - 6, y(value) + 4, label, "tick end")
    for value, label in _labelled(x) if x_ticks is None else x_ticks:
        svg.line(x(value), y.start, x(value), y.start + 4, "axis")
        svg.text(x(value), y.start + 17, label, "tick middle")
    svg.line(x.start, y.start, x.end, y.start, "axis")
    if x_label:
        svg.text((x.start + x.end) / 2, y.start + 34, x_label, "label middle")
    if y_label:
        svg.text(x.start, y.end - 9, y_label, "label")


def _labelled(scale: Scale) -> list[tuple[float, str]]:
    return [(value, f"{value:.6g}") for value in scale.ticks()]


def path(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """The ``d`` of a path through ``points``."""
    steps = " ".join(f"{number(px)},{number(py)}" for px, py in points)
    return f"M{steps}{'Z' if closed else ''}"
