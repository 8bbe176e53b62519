# SPDX-License-Identifier: Apache-2.0
"""What each section of the page shows: figures with captions, and the numbers beside them as text."""

from typing import Any

import numpy as np
from markupsafe import Markup

from shplb import InvalidArgument
from shplb.agreement import Correlation
from shplb.needed_density import TARGETS, needed_density
from shplb.plan import ServingPlan
from shplb.planning import count_bound
from shplb.profile import HeadProfile
from shplb.rank_loads import RankLoads, imbalance
from shplb.replica_price import price_of
from shplb.report.curves import BANDS, draw_curves
from shplb.report.heat_map import chosen_lengths, draw_heat_map
from shplb.report.loads import draw_loads
from shplb.report.stability import MAX_POINTS, comparisons, draw_comparison
from shplb.report.svg import Svg
from shplb.report.timeline import Step, chunk_of, draw_timeline, predict_steps
from shplb.stability import NAMES, stability

#: Maps up to this width stand side by side.
_PAIR_WIDTH = 520

Section = dict[str, Any]


def _drawing(svg: Svg) -> Markup:
    return Markup(svg.render())


def load_section(plan: ServingPlan) -> Section | None:
    """None for a single rank."""
    if plan.tp_size == 1:
        return None
    loads = RankLoads.of(plan)
    rows = [_load_row(name, loads, ranks) for name, ranks in loads.rows]
    rows.append({"name": "lower bound", "imbalance": f"{loads.bound_imbalance:.3f}", "worst": "", "loads": []})
    model = plan.model
    real = model.num_kv_heads - len(model.inert_kv_heads)
    bound = count_bound(model.num_kv_heads, len(model.inert_kv_heads), plan.tp_size) if real else 1.0
    return {
        "drawing": _drawing(draw_loads(loads)),
        "caption": f"{real} KV groups on {plan.tp_size} ranks; with equal loads they could not be better than "
        f"{bound:.2f}{' whole' if plan.replicas else ''}. Hover or tap a layer for its numbers."
        + (f" Replicas have a {price_of(plan).text}." if plan.replicas else ""),
        "num_ranks": plan.tp_size,
        "rows": rows,
    }


def _load_row(name: str, loads: RankLoads, ranks: np.ndarray) -> Section:
    ratios = loads.layer_imbalance(ranks)
    worst = int(ratios.argmax())
    totals = [str(total) for total in ranks.sum(axis=0).tolist()]
    return {
        "name": name,
        "imbalance": f"{imbalance(ranks):.3f}",
        "worst": f"{ratios[worst]:.3f} (layer {worst})",
        "loads": totals,
    }


def map_section(plan: ServingPlan, profile: HeadProfile | None) -> list[Section]:
    """Budgets, and with a profile the needed density for recovery."""
    chosen = chosen_lengths(plan.model, plan.lengths)
    lengths = plan.lengths[chosen].tolist()
    caption = "Share of the visible pages that a head may keep, as the plan says."
    maps = [_map(plan, plan.budgets[:, :, chosen], lengths, "budget (share of visible pages)", caption)]
    if profile is not None:
        target = TARGETS["recovery"]
        needed = needed_density(profile, profile.mean_curves("recovery"), "recovery", target)
        chosen = chosen_lengths(profile.model, profile.lengths)
        lengths = profile.lengths[chosen].tolist()
        caption = f"Density at which a head has recovered {target:.0%} of its attention mass, as profiled."
        what = f"needed density at recovery {target:.2f}"
        maps.append(_map(plan, needed[:, :, chosen], lengths, what, caption))
    return maps


def _map(plan: ServingPlan, values: np.ndarray, lengths: list[int], what: str, caption: str) -> Section:
    svg = draw_heat_map(plan, values, lengths, what)
    return {"drawing": _drawing(svg), "caption": caption, "lengths": lengths, "wide": svg.width > _PAIR_WIDTH}


def curve_section(profile: HeadProfile) -> list[Section]:
    """Recovery and output error at the longest length; nothing where every head is padding."""
    if profile.inert.all():
        return []
    low, high = BANDS[0]
    where = f"at {profile.lengths[-1]} tokens, mean over {len(profile.documents)} documents"
    shared = f"{where}; the wide band holds {low:.0%} to {high:.0%} of heads"
    captions = {
        "recovery": f"Recovery {shared}. Named heads need the most and the least for {TARGETS['recovery']:.0%}.",
        "error": f"Output error {shared}. Named heads have the largest and the smallest error at density 1/8.",
    }
    return [{"drawing": _drawing(draw_curves(profile, name)), "caption": text} for name, text in captions.items()]


def stability_section(profile: HeadProfile) -> Section:
    """The verdict, the warning or None, and the correlations as rows of text."""
    found = stability(profile)
    rows = []
    for part in found.needed:
        goal = f"{NAMES[part.quantity]} {part.target:g}"
        for item in part.agreements:
            rows.append(
                [goal, item.axis, str(item.pairs), _correlation(item.overall), _correlation(item.within_layers)]
            )
    return {"verdict": found.verdict, "warning": found.warning, "rows": rows}


def _correlation(found: Correlation | None) -> str:
    return "-" if found is None else f"{found.spearman:.2f} ({found.least_spearman:.2f}), {found.pearson:.2f}"


def scatter_section(profile: HeadProfile) -> list[Section]:
    """One scatter per comparison that the profile allows."""
    sections = []
    for comparison in comparisons(profile):
        count = len(comparison.first)
        thinned = f" One head in {-(-count // MAX_POINTS)} is drawn." if count > MAX_POINTS else ""
        caption = (
            f"Needed density at recovery {TARGETS['recovery']:.2f} of {count} heads, {comparison.first_name} against "
            f"{comparison.second_name}: Spearman {comparison.spearman:.3f}, Pearson {comparison.pearson:.3f}.{thinned}"
        )
        sections.append({"drawing": _drawing(draw_comparison(comparison)), "caption": caption})
    return sections


def timeline_section(plan: ServingPlan) -> Section:
    """``drawing`` and numbers, or a ``reason`` why there is none."""
    try:
        contiguous, placed = predict_steps(plan)
    except InvalidArgument as error:
        return {"reason": f"The step planner does not serve this model ({error})."}
    prefix, new = chunk_of(plan)
    verdict = "sparse" if placed.auto_sparse else "dense"
    padding = " Padded KV groups cost the pages that are always kept." if plan.model.inert_kv_heads else ""
    return {
        "drawing": _drawing(draw_timeline(contiguous, placed)),
        "caption": "Blue is a rank's predicted attention time in a layer, orange the time it waits for the slowest "
        "rank of that layer.",
        "rows": [_step_row("contiguous", contiguous), _step_row("placed", placed)],
        "text": f"One request, {new} new tokens after {prefix} cached ones, with the budgets of this plan, as the step "
        "planner predicts it with rates measured on an H200, if it runs sparse. Attention kernels only: page "
        "selection, projections and communication are not in the picture. A rank takes at least as long as its longest "
        f"work item, which placement can't shorten; short prompts feel it.{padding}",
        "auto": f"As placed, and with page selection, the sparse step takes {placed.step_ns / 1e6:.3f} ms, the dense "
        f"one {placed.dense_ns / 1e6:.3f} ms. Left to itself, the planner runs it {verdict}.",
    }


def _step_row(name: str, step: Step) -> Section:
    return {"name": name, "makespan": f"{step.makespan_ns / 1e6:.3f} ms", "bubble": f"{step.bubble:.1%}"}
