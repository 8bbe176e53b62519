# SPDX-License-Identifier: Apache-2.0
"""The report's figures as SVG files of their own, which follow the light or dark scheme of who looks."""

from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

from shplb.container import write_atomically
from shplb.needed_density import TARGETS, needed_density
from shplb.plan import ServingPlan
from shplb.profile import HeadProfile
from shplb.rank_loads import RankLoads
from shplb.report.curves import draw_curves
from shplb.report.heat_map import draw_heat_map
from shplb.report.loads import draw_loads
from shplb.report.svg import Svg, number
from shplb.report.timeline import draw_timeline, predict_steps

_MARGIN = 10


def write_figures(plan: ServingPlan, profile: HeadProfile | None, folder: Path) -> list[Path]:
    """Write every figure that plan and profile allow into ``folder``, which is made; returns the files.

    InvalidArgument for a head size that the step planner does not serve.
    """
    style = files("shplb.report").joinpath("page.css").read_text(encoding="utf-8")
    written = []
    for name, svg in _figures(plan, profile).items():
        path = folder / f"{name}.svg"
        write_atomically(path, standalone(svg, style).encode())
        written.append(path)
    return written


def _figures(plan: ServingPlan, profile: HeadProfile | None) -> dict[str, Svg]:
    longest = [int(plan.lengths[-1])]
    found = {"budgets": draw_heat_map(plan, plan.budgets[:, :, -1:], longest, "budget (share of visible pages)")}
    if plan.tp_size > 1:
        found |= {"loads": draw_loads(RankLoads.of(plan)), "timeline": draw_timeline(*predict_steps(plan))}
    if profile is not None and not profile.inert.all():
        target = TARGETS["recovery"]
        needed = needed_density(profile, profile.mean_curves("recovery"), "recovery", target)[:, :, -1:]
        what = f"needed density at recovery {target:.2f}"
        found["needed-density"] = draw_heat_map(plan, needed, [int(profile.lengths[-1])], what)
        found |= {name: draw_curves(profile, name) for name in ("recovery", "error")}
    return found


def standalone(svg: Svg, style: str) -> str:
    """A whole SVG document: size, the page's colours, and paper behind the figure."""
    width, height = svg.width + 2 * _MARGIN, svg.height + 2 * _MARGIN
    box = {"viewBox": f"{-_MARGIN} {-_MARGIN} {number(width)} {number(height)}"}
    size = {"width": number(width), "height": number(height)}
    root = ElementTree.Element("svg", {**svg.root.attrib, **box, **size, "xmlns": "http://www.w3.org/2000/svg"})
    root.attrib.pop("style", None)
    ElementTree.SubElement(root, "style").text = style
    paper = {"x": str(-_MARGIN), "y": str(-_MARGIN), **size, "style": "fill:var(--paper)"}
    ElementTree.SubElement(root, "rect", paper)
    root.extend(svg.root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
