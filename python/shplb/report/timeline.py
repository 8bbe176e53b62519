# SPDX-License-Identifier: Apache-2.0
"""One prefill step as the step planner predicts it: ranks over layers, and the bubbles in which they wait."""

from dataclasses import dataclass

import numpy as np

from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.report.svg import Scale, Svg, draw_axes
from shplb.simulator import simulate

CHUNK_TOKENS = 8192
_WIDTH, _LEFT, _TOP, _BOTTOM = 960, 70, 40, 44


@dataclass(frozen=True)
class Step:
    """What the planner predicts for one chunk of one request, run sparse.

    Attributes:
        rank_ns: int64 [num_layers, num_ranks], attention time of each rank in each layer.
        makespan_ns: slowest rank of each layer, summed. bubble: share of it that ranks wait, on average.
        step_ns: the sparse step with page selection; dense_ns: the same step on the stock path.
        auto_sparse: whether the planner, left to itself, would run it sparse.
    """

    rank_ns: np.ndarray
    makespan_ns: int
    bubble: float
    step_ns: int
    dense_ns: int
    auto_sparse: bool


def chunk_of(plan: ServingPlan) -> tuple[int, int]:
    """(prefix, new) tokens: the last chunk of the longest profiled prompt, at most half of it."""
    longest = int(plan.lengths[-1])
    new = max(min(CHUNK_TOKENS, longest // 2), 1)
    return longest - new, new


def predict_steps(plan: ServingPlan) -> tuple[Step, Step]:
    """The chunk of ``chunk_of`` under stock's contiguous sharding, and as placed. InvalidArgument for a head_dim that
    the kernel does not serve."""
    table = plan.budget_table(int(plan.lengths[-1]))
    return _predict(plan, table.pages, plan.own_order), _predict(plan, table.pages, plan.physical_to_logical)


def _predict(plan: ServingPlan, pages: np.ndarray, order: np.ndarray) -> Step:
    planner = planner_of(plan, pages, order, plan.tp_size)
    prefix, new = (np.array([tokens], dtype=np.int64) for tokens in chunk_of(plan))
    one_step = np.array([0, 1], dtype=np.int64)
    sparse, auto = (simulate(planner, one_step, prefix, new, mode) for mode in ("sparse", "auto"))
    return Step(
        rank_ns=np.asarray(planner.predict(prefix, new, "sparse").rank_makespan_ns),
        makespan_ns=int(sparse.makespan_ns[0]),
        bubble=float(sparse.bubble[0]),
        step_ns=int(sparse.step_ns[0]),
        dense_ns=int(sparse.dense_ns[0]),
        auto_sparse=bool(auto.num_sparse[0]),
    )


def draw_timeline(contiguous: Step, placed: Step) -> Svg:
    """Two panels on one time axis; a layer starts when the slowest rank has finished the one before."""
    ranks = contiguous.rank_ns.shape[1]
    lane = 26.0 if ranks <= 8 else 14.0
    panel = lane * ranks
    svg = Svg(_WIDTH, 2 * (panel + _TOP + _BOTTOM), "Timeline of one prefill step, rank by rank")
    longest_ms = max(contiguous.makespan_ns, placed.makespan_ns, 1) / 1e6
    x = Scale(0.0, longest_ms, _LEFT, _WIDTH - 10)
    for index, (name, step) in enumerate((("contiguous", contiguous), ("placed", placed))):
        top = index * (panel + _TOP + _BOTTOM) + _TOP
        y = Scale(0.0, float(ranks), top + panel, top)
        labels = [(ranks - rank - 0.5, f"rank {rank}") for rank in range(ranks)] if ranks <= 16 else []
        draw_axes(svg, x, y, x_label="predicted attention time (ms)" if index else "", y_label="", y_ticks=labels)
        heading = f"{name}: {step.makespan_ns / 1e6:.3f} ms, bubbles {step.bubble:.1%}"
        svg.text(_LEFT, top - 10, heading, "heading")
        _draw_lanes(svg, x, step, top, lane)
    return svg


def _draw_lanes(svg: Svg, x: Scale, step: Step, top: float, lane: float) -> None:
    start_ns = 0
    for layer, row in enumerate(step.rank_ns.tolist()):
        slowest = max(row)
        left, right = x(start_ns / 1e6), x((start_ns + slowest) / 1e6)
        svg.add("rect", x=left, y=top, width=max(right - left - 0.6, 0.2), height=lane * len(row), class_="wait")
        for rank, time_ns in enumerate(row):
            width = (right - left - 0.6) * time_ns / slowest if slowest else 0.0
            hint = f"layer {layer}, rank {rank}: {time_ns / 1e3:.1f} of {slowest / 1e3:.1f} us"
            at = top + rank * lane
            svg.add("rect", x=left, y=at, width=max(width, 0.2), height=lane, class_="work", title=hint)
        start_ns += slowest
    for rank in range(1, step.rank_ns.shape[1]):
        svg.line(x.start, top + rank * lane, x.end, top + rank * lane, "gap")
