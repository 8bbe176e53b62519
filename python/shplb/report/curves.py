# SPDX-License-Identifier: Apache-2.0
"""Recovery and output error against density: the median head, quantile bands over heads, and a few extreme heads."""

from collections.abc import Sequence

import numpy as np

from shplb.needed_density import TARGETS, needed_density
from shplb.profile import HeadProfile
from shplb.report.svg import Scale, Svg, draw_axes, path

BANDS = ((0.05, 0.95), (0.25, 0.75))
_WIDTH, _PLOT, _LEFT, _TOP = 470, 300, 58, 34


def extreme_heads(scores: np.ndarray, count: int = 2) -> list[tuple[int, int]]:
    """(layer, head) of the ``count`` highest and ``count`` lowest ``scores`` [num_layers, num_qo_heads]; NaN heads are
    left out."""
    flat = scores.ravel()
    order = [int(index) for index in np.argsort(flat, kind="stable") if not np.isnan(flat[index])]
    chosen = dict.fromkeys([*reversed(order[-count:]), *order[:count]])
    return [divmod(index, scores.shape[1]) for index in chosen]


def head_scores(profile: HeadProfile, name: str) -> np.ndarray:
    """float64 [num_layers, num_qo_heads] at the longest length, NaN for padded heads: needed density for recovery, or
    the output error at density 1/8 or the measured one next to it."""
    curves = profile.mean_curves(name)
    if name == "recovery":
        scores = needed_density(profile, curves, "recovery", TARGETS["recovery"])[:, :, -1].copy()
    else:
        scores = curves[:, :, -1, int(np.argmin(np.abs(profile.densities - 1 / 8)))].copy()
    scores[profile.inert] = np.nan
    return scores


def draw_curves(profile: HeadProfile, name: str) -> Svg:
    """``name`` is recovery (linear) or error (logarithmic), at the longest profiled length. The error at density 1 is
    rounding alone and left out."""
    points = slice(None) if name == "recovery" else slice(-1)
    curves, densities = profile.mean_curves(name)[:, :, -1, points], profile.densities[points]
    real = curves[~profile.inert]
    heads = extreme_heads(head_scores(profile, name))
    lines = [np.quantile(real, share, axis=0) for band in BANDS for share in band]
    label = "recovered attention mass" if name == "recovery" else "output error (squared, model's units)"
    svg = Svg(_WIDTH, _TOP + _PLOT + 60 + 18 * (len(heads) + 3), f"{label} against density")
    x = Scale(float(profile.densities[0]), 1.0, _LEFT, _WIDTH - 14, log=True)
    bottom = _TOP + _PLOT
    y = (
        Scale(0.0, 1.0, bottom, _TOP)
        if name == "recovery"
        else _error_scale(np.array([*lines, *(curves[layer, head] for layer, head in heads)]), bottom)
    )
    draw_axes(svg, x, y, x_label="density (share of pages kept)", y_label=label, x_ticks=_density_ticks(profile))
    for class_, (lower, upper) in zip(("band wide-band", "band"), (lines[:2], lines[2:]), strict=True):
        outline = _points(x, y, densities, upper) + _points(x, y, densities, lower)[::-1]
        if outline:
            svg.add("path", d=path(outline, closed=True), class_=class_)
    _draw_line(svg, _points(x, y, densities, np.median(real, axis=0)), "curve median", "median of all heads")
    for index, (layer, head) in enumerate(heads):
        line = _points(x, y, densities, curves[layer, head])
        _draw_line(svg, line, f"curve extreme s{index}", f"layer {layer}, head {head}")
    _draw_legend(svg, bottom + 58, [f"layer {layer}, head {head}" for layer, head in heads])
    return svg


def _error_scale(drawn: np.ndarray, bottom: float) -> Scale:
    """Whole decades around what is drawn; zeros have no place on it."""
    positive = drawn[drawn > 0]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1e-3, 1.0)
    return Scale(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high) + 1e-9), bottom, _TOP, log=True)


def _density_ticks(profile: HeadProfile) -> list[tuple[float, str]]:
    octaves = range(int(np.floor(-np.log2(profile.densities[0]) + 1e-9)), -1, -1)
    stride = max(1, len(octaves) // 6)
    return [(2.0**-octave, f"1/{2**octave}" if octave else "1") for octave in octaves if octave % stride == 0]


def _points(x: Scale, y: Scale, densities: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
    pairs = zip(densities.tolist(), values.tolist(), strict=True)
    return [(x(density), y(value)) for density, value in pairs if value > 0 or not y.log]


def _draw_line(svg: Svg, points: Sequence[tuple[float, float]], class_: str, title: str) -> None:
    if points:
        svg.add("path", d=path(points), class_=class_, title=title)


def _draw_legend(svg: Svg, top: float, heads: Sequence[str]) -> None:
    bands = [
        (f"{low:.0%} to {high:.0%} of heads", class_)
        for (low, high), class_ in zip(BANDS, ("band wide-band", "band"), strict=True)
    ]
    for index, (text, class_) in enumerate(bands):
        svg.add("rect", x=float(_LEFT), y=top + 18 * index - 9, width=26.0, height=10.0, class_=class_)
        svg.text(_LEFT + 34, top + 18 * index, text, "tick")
    rows = [("median of all heads", "curve median")]
    rows += [(text, f"curve extreme s{index}") for index, text in enumerate(heads)]
    for index, (text, class_) in enumerate(rows, start=len(bands)):
        at = top + 18 * index - 4
        svg.line(_LEFT, at, _LEFT + 26, at, class_)
        svg.text(_LEFT + 34, at + 4, text, "tick")
