# SPDX-License-Identifier: Apache-2.0
"""Figures of the report show the numbers of the functions that compute them."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_pages import HOSTILE, PLAN, PROFILE, figures, report_of, shown, titles
from scipy.stats import pearsonr, spearmanr
from synthetic import LENGTHS, make_profile

from shplb.needed_density import needed_density
from shplb.placement import place_heads
from shplb.planning import make_plan
from shplb.rank_loads import RankLoads, imbalance
from shplb.report.curves import extreme_heads
from shplb.report.heat_map import ColourScale
from shplb.report.stability import comparisons
from shplb.report.svg import Scale, Svg
from shplb.report.timeline import chunk_of, predict_steps
from shplb.stability import stability


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_of(tmp_path_factory.mktemp("report"), PLAN, PROFILE)


def test_imbalance_is_what_the_planner_computes(page: str) -> None:
    before, after = PLAN.rank_loads(PLAN.loads, contiguous=True), PLAN.rank_loads(PLAN.loads)
    assert imbalance(before) > imbalance(after) + 0.01
    assert shown(page, "imbalance-contiguous") == f"{imbalance(before):.3f}"
    assert shown(page, "imbalance-placed") == f"{imbalance(after):.3f}"
    bound = place_heads(PLAN.loads, 2).lower_bound
    assert shown(page, "imbalance-lower bound") == f"{bound.sum() / after.mean(axis=1).sum():.3f}"
    reference = place_heads(PLAN.loads, 2, method="contiguous")
    np.testing.assert_allclose(RankLoads.of(PLAN).layer_imbalance(before), reference.imbalance)
    hints = titles(figures(page)[0])
    for loads, part in ((before, hints[:5]), (after, hints[5:])):
        for layer, hint in enumerate(part):
            first, second = loads[layer]
            assert hint.startswith(f"layer {layer}: rank 0 {first:.6g}, rank 1 {second:.6g}; max/mean ")
            assert hint.endswith(f"lower bound {bound[layer]:.6g}")


def test_bars_are_drawn_to_scale(page: str) -> None:
    """Work plus waiting is the slowest rank, on one scale for both panels."""
    figure = figures(page)[0]
    heights = {
        kind: [float(bar.get("height", 0)) for bar in figure.iter("rect") if bar.get("class") == kind]
        for kind in ("work", "wait")
    }
    loads = np.concatenate([PLAN.rank_loads(PLAN.loads, contiguous=True), PLAN.rank_loads(PLAN.loads)])
    pixels = 190 / loads.max()
    np.testing.assert_allclose(heights["work"], loads.mean(axis=1) * pixels, atol=0.02)
    np.testing.assert_allclose(heights["wait"], (loads.max(axis=1) - loads.mean(axis=1)) * pixels, atol=0.02)


def test_maps_show_budgets_and_needed_density(page: str) -> None:
    needed = needed_density(PROFILE, PROFILE.mean_curves("recovery"), "recovery", 0.9)
    for figure, values in zip(figures(page)[1:3], (PLAN.budgets, needed), strict=True):
        cells = [list(row) for row in figure.iter("g") if row.get("class") == "row"]
        assert [len(row) for row in cells] == [16] * 5
        for layer, head in np.ndindex(5, 16):
            cell, rank = cells[layer][head], int(np.argwhere(PLAN.physical_to_logical[layer] == head // 2)[0, 0]) // 4
            name = f"layer {layer}, head {head}, KV group {head // 2}, rank {rank}"
            if head >= 14:
                assert (cell.get("class"), titles(cell)) == ("inert", [f"{name}: padding"])
                continue
            expected = [f"{share:.4g}" for share in values[layer, head]]
            assert cell.get("data-v", "").split() == expected
            assert titles(cell) == [f"{name}: {expected[-1]}"]
            assert cell.get("class") == f"c{cell.get('data-c', '').split()[-1]}"
        orders = [[int(cell.get("data-p", -1)) for cell in row] for row in cells]
        for layer, order in enumerate(orders):
            np.testing.assert_array_equal(np.argsort(order)[::2] // 2, PLAN.physical_to_logical[layer])


def test_timeline_is_the_step_planner(page: str) -> None:
    assert chunk_of(PLAN) == (LENGTHS[-1] - 8192, 8192)
    figure = figures(page)[-1]
    bars = [element for element in figure.iter("rect") if element.get("class") == "work"]
    assert len(bars) == 2 * 5 * 2
    contiguous, placed = predict_steps(PLAN)
    for name, step in (("contiguous", contiguous), ("placed", placed)):
        assert step.makespan_ns == step.rank_ns.max(axis=1).sum() > 0
        assert step.bubble == pytest.approx(1 - step.rank_ns.sum(axis=0).mean() / step.makespan_ns)
        assert shown(page, f"makespan-{name}") == f"{step.makespan_ns / 1e6:.3f} ms"
        assert shown(page, f"bubble-{name}") == f"{step.bubble:.1%}"
    rank_ns = np.concatenate([contiguous.rank_ns, placed.rank_ns]).ravel()
    assert [float(hint.split(": ")[1].split()[0]) for hint in titles(figure)] == [round(ns / 1e3, 1) for ns in rank_ns]
    assert shown(page, "bubble") == f"{contiguous.bubble:.1%} \u2192 {placed.bubble:.1%}"


def test_stability_is_over_real_heads(page: str) -> None:
    lengths, halves = comparisons(PROFILE)
    needed = needed_density(PROFILE, PROFILE.mean_curves("recovery"), "recovery", 0.9)[:, :14].reshape(-1, len(LENGTHS))
    np.testing.assert_array_equal(lengths.first, needed[:, 0])
    np.testing.assert_array_equal(lengths.second, needed[:, -1])
    assert not np.array_equal(halves.first, halves.second)
    for comparison in (lengths, halves):
        assert comparison.spearman == pytest.approx(spearmanr(comparison.first, comparison.second).statistic)
        assert comparison.pearson == pytest.approx(pearsonr(comparison.first, comparison.second).statistic)
        assert f"Spearman {comparison.spearman:.3f}, Pearson {comparison.pearson:.3f}" in page
    assert [len(titles(figure)) for figure in figures(page)[5:7]] == [70, 70]


def test_the_stability_report_is_shown(page: str) -> None:
    report = stability(PROFILE)
    assert report.warning  # of random curves
    for text in (report.verdict, report.warning):
        assert text.replace("'", "&#39;") in page
    for part in report.needed:
        for item in filter(lambda item: item.overall, part.agreements):
            assert item.overall is not None
            numbers = f"{item.overall.spearman:.2f} ({item.overall.least_spearman:.2f}), {item.overall.pearson:.2f}"
            assert f"<td>{item.axis}</td><td>{item.pairs}</td><td>{numbers}</td>" in page


def test_curves_are_those_of_the_profile(page: str) -> None:
    """The median and the bands pass through quantiles of the mean curves of real heads."""
    densities, real = np.array(PROFILE.densities), ~PROFILE.inert
    for figure, name in zip(figures(page)[3:5], ("recovery", "error"), strict=True):
        curves = PROFILE.mean_curves(name)[:, :, -1][real]
        count = len(densities) - (name == "error")
        x = 58 + (470 - 14 - 58) * (np.log(densities / densities[0]) / -np.log(densities[0]))
        drawn = {
            line.get("class"): np.array(re.findall(r"[-\d.]+", line.get("d", "")), dtype=float).reshape(-1, 2)
            for line in figure.iter("path")
        }
        median = np.median(curves, axis=0)[:count]
        outer = np.quantile(curves, (0.95, 0.05), axis=0)[:, :count]
        values = np.concatenate([median, outer[0], outer[1, ::-1]])
        pixels = np.concatenate([drawn["curve median"], drawn["band wide-band"]])
        np.testing.assert_allclose(pixels[:count, 0], x[:count], atol=0.01)
        # One straight line leads from values (or their logarithms) to pixels.
        level = values if name == "recovery" else np.log(values)
        slope, start = np.polyfit(level, pixels[:, 1], 1)
        assert slope < 0
        np.testing.assert_allclose(pixels[:, 1], slope * level + start, atol=0.02)


def test_one_document_has_no_halves(tmp_path: Path) -> None:
    profile = make_profile(documents=1)
    assert [item.second_name for item in comparisons(profile)] == [f"{LENGTHS[-1]} tokens"]
    assert "odd documents" not in report_of(tmp_path, make_plan(profile, tp_size=2, density=0.2), profile)


def test_extreme_heads_are_named_once() -> None:
    scores = np.array([[0.3, np.nan, 0.1], [0.9, 0.5, np.nan]])
    assert extreme_heads(scores) == [(1, 0), (1, 1), (0, 2), (0, 0)]
    assert extreme_heads(scores[:1]) == [(0, 0), (0, 2)]


def test_svg_text_is_escaped() -> None:
    svg = Svg(10, 10, HOSTILE)
    svg.add("text", text=HOSTILE, title=HOSTILE, class_=HOSTILE)
    root = ElementTree.fromstring(svg.render())
    expected = HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert [root[0].text, root[0].get("class"), root[0][0].text, root.get("aria-label")] == [expected] * 4


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1, 0, 10), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Scale(0, 19000, 0, 10), [0, 5000, 10000, 15000]),
        (Scale(0.003, 20, 0, 10, log=True), [0.01, 0.1, 1, 10]),
        (Scale(2, 2, 0, 10), [2]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    np.testing.assert_allclose(scale.ticks(), ticks, rtol=1e-12)


def test_scales_clip_and_colours_rise() -> None:
    log = Scale(0.01, 1, 100, 0, log=True)
    assert [round(log(value), 6) for value in (0.0, 0.01, 0.1, 1, 2)] == [100, 100, 50, 0, 0]
    colours = ColourScale(np.array([1 / 60, 0.5]))
    assert [colours.colour(share) for share in (1e-6, 1 / 64, 1 / 8, 0.999, 1.0)] == [0, 0, 8, 15, 15]
