# SPDX-License-Identifier: Apache-2.0
"""Does what a head needs carry over? Needed density of every head at one length against another, and in one half of
the documents against the other."""

from dataclasses import dataclass

import msgspec
import numpy as np

from shplb.needed_density import TARGETS, needed_density
from shplb.profile import HeadProfile
from shplb.rank_correlation import pearson, spearman
from shplb.report.svg import Scale, Svg, draw_axes

#: More heads than this are thinned out in the drawing; correlations are over all.
MAX_POINTS = 2048
_SIZE, _LEFT, _TOP, _BOTTOM = 380, 58, 34, 50


@dataclass(frozen=True)
class Comparison:
    """Needed density of the real heads under two conditions: float64 [num_heads] each; heads: int64 [num_heads, 2],
    (layer, head). The correlations are over heads, NaN where one side is constant."""

    first_name: str
    second_name: str
    first: np.ndarray
    second: np.ndarray
    heads: np.ndarray

    @property
    def spearman(self) -> float:
        return float(spearman(np.stack([self.first, self.second]))[0, 1])

    @property
    def pearson(self) -> float:
        return float(pearson(np.stack([self.first, self.second]))[0, 1])


def comparisons(profile: HeadProfile) -> list[Comparison]:
    """Shortest against longest length, and even against odd documents at the longest; what the profile allows."""
    heads = np.argwhere(~profile.inert)
    found: list[Comparison] = []
    if not len(heads):
        return found
    if len(profile.lengths) > 1:
        needed, lengths = _needed(profile), profile.lengths
        names = (f"{lengths[0]} tokens", f"{lengths[-1]} tokens")
        found.append(Comparison(*names, needed[..., 0], needed[..., -1], heads))
    # Halves without rows at a length have no curve there.
    halves = [half for half in (_documents(profile, 0), _documents(profile, 1)) if half.rows[:, -1].sum() > 0]
    if len(halves) == 2:
        first, second = (_needed(half)[..., -1] for half in halves)
        found.append(Comparison("even documents", "odd documents", first, second, heads))
    return found


def _needed(profile: HeadProfile) -> np.ndarray:
    """float64 [num_real_heads, num_lengths]."""
    curves = profile.mean_curves("recovery")
    needed = needed_density(profile, curves, "recovery", TARGETS["recovery"])
    return np.asarray(needed[~profile.inert])


def _documents(profile: HeadProfile, start: int) -> HeadProfile:
    taken = slice(start, None, 2)
    return msgspec.structs.replace(
        profile,
        documents=profile.documents[taken],
        rows=profile.rows[taken],
        error=profile.error[taken],
        recovery=profile.recovery[taken],
    )


def draw_comparison(comparison: Comparison) -> Svg:
    """One dot per head on logarithmic axes; on the diagonal a head needs the same in both."""
    svg = Svg(
        _LEFT + _SIZE + 14,
        _TOP + _SIZE + _BOTTOM,
        f"Needed density, {comparison.first_name} against {comparison.second_name}",
    )
    both = np.concatenate([comparison.first, comparison.second])
    least = float(both[both > 0].min()) if np.any(both > 0) else 0.5
    low = 2.0 ** min(np.floor(np.log2(least) + 1e-9), -1)
    x = Scale(low, 1.0, _LEFT, _LEFT + _SIZE, log=True)
    y = Scale(low, 1.0, _TOP + _SIZE, _TOP, log=True)
    octaves = range(round(-np.log2(low)) + 1)
    stride = max(1, len(octaves) // 6)
    ticks = [(2.0**-octave, f"1/{2**octave}" if octave else "1") for octave in octaves if octave % stride == 0]
    draw_axes(
        svg,
        x,
        y,
        x_label=f"needed density, {comparison.first_name}",
        y_label=f"needed density, {comparison.second_name}",
        x_ticks=ticks,
        y_ticks=ticks,
    )
    svg.line(x.start, y.start, x.end, y.end, "bound")
    step = -(-len(comparison.first) // MAX_POINTS)
    for (layer, head), first, second in list(
        zip(comparison.heads.tolist(), comparison.first.tolist(), comparison.second.tolist(), strict=True)
    )[::step]:
        hint = f"layer {layer}, head {head}: {first:.3f}, {second:.3f}"
        svg.add("circle", cx=x(first), cy=y(second), r=3, class_="point", title=hint)
    return svg
