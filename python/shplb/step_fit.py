# SPDX-License-Identifier: Apache-2.0
"""What a server takes besides attention, fitted to measured times to first token.

Of a prompt that is alone in the server, TTFT is taken as

    step_ms * steps + token_us * new tokens + prompt_us * prompt tokens + attention

with ``attention`` from the planner's cost model. ``step_ms`` is what a step takes at least (launches, scheduling);
``prompt_us`` is paid for cached tokens, too (reading the request, looking it up in the radix cache). The three are
fitted by non-negative least squares, errors relative to the measured time, to prompts that were served *dense*, so that
what sparse prefill takes is predicted, not fitted.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shplb.device import H200, Device
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.planner import Mode, StepPlanner
from shplb.rates import nonnegative_fit
from shplb.simulation import StepCost
from shplb.sparsity import PAGE_SIZE, num_pages
from shplb.traces import TraceError, read_trace

_LEAST_POINTS = 4  # one more than there is to fit
_FEW_PROMPTS = 5
_STOCK = ("stock", "fa3", "flashinfer")


@dataclass(frozen=True)
class Point:
    """Time to first token of one prompt that was alone in the server: tokens, of which cached, and milliseconds."""

    prompt_tokens: int
    cached_tokens: int
    ttft_ms: float
    variant: str = "stock"


@dataclass(frozen=True)
class StepFit:
    """The fitted cost, and the relative errors of the points that it was fitted to."""

    cost: StepCost
    points: int
    median_error: float
    worst_error: float


def read_points(path: Path) -> list[Point]:
    """Points of ``bench_serving.py``'s JSON, or of output of SGLang's benchmark with one client (taken as stock).

    Raises:
        TraceError: in one sentence, when the file holds neither.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None  # lines of JSON, or nothing; the reader of traces says which
    if isinstance(found, dict) and found.get("bench") == "serving":
        return _bench_points(path, found)
    trace = read_trace(path)
    if trace.measured_ttft_s is None or trace.concurrency != 1:
        raise TraceError(f"{path} holds no TTFT of prompts sent one at a time: run the benchmark with one client.")
    columns = trace.input_tokens.tolist(), trace.prefix_tokens.tolist(), (1e3 * trace.measured_ttft_s).tolist()
    return [Point(*values) for values in zip(*columns, strict=True)]


def _bench_points(path: Path, found: dict[str, Any]) -> list[Point]:
    try:
        return [
            Point(row["input_tokens"], row.get("cached_tokens", 0), bench_ttft_ms(row), row["variant"])
            for row in found["rows"]
            if row["concurrency"] == 1
        ]
    except (KeyError, TypeError, ValueError):
        raise TraceError(f"{path} is no result of bench_serving.py: run the bench again.") from None


def bench_ttft_ms(row: dict[str, Any]) -> float:
    """Of a row of bench_serving.py: the median, or the fastest of so few prompts that the first would weigh."""
    return float(row["ttft_p50_ms"] if row["prompts"] >= _FEW_PROMPTS else min(row["ttft_ms"]))


def is_stock(point: Point) -> bool:
    """Served by SGLang alone, so dense."""
    return point.variant in _STOCK


def fit_step_cost(
    plan: ServingPlan, points: list[Point], *, tp_size: int, chunk_tokens: int = 8192, device: Device = H200
) -> StepFit:
    """Fit to the stock points; ``plan`` gives the model, ``tp_size`` and ``chunk_tokens`` are those of the server.

    Raises:
        TraceError: there are too few.
    """
    stock = [point for point in points if is_stock(point)]
    if len(stock) < _LEAST_POINTS:
        raise TraceError(
            f"{len(stock)} points were served by stock SGLang, expected {_LEAST_POINTS} or more: measure more lengths."
        )
    planner = planner_for(plan, points, tp_size=tp_size, device=device)
    columns, times = [], []
    for point in stock:
        steps = steps_of(point, chunk_tokens)
        columns.append([len(steps), sum(new for _, new in steps) * 1e-3, point.prompt_tokens * 1e-3])
        times.append(point.ttft_ms - attention_ms(planner, point, chunk_tokens, "dense"))
    goal = [point.ttft_ms for point in stock]
    step_ms, token_us, prompt_us = nonnegative_fit(columns, times, 1 / np.array(goal))
    cost = StepCost(
        step_ms=round(step_ms, 3), token_us=round(token_us, 3), prompt_us=round(prompt_us, 4), chunk_tokens=chunk_tokens
    )
    errors = [abs(predict_ttft_ms(planner, point, cost, "dense") / point.ttft_ms - 1) for point in stock]
    return StepFit(cost, len(stock), float(np.median(errors)), max(errors))


def predict_ttft_ms(planner: StepPlanner, point: Point, cost: StepCost, mode: Mode = "auto") -> float:
    """Predicted time to first token of a prompt that is alone in the server."""
    steps = steps_of(point, cost.chunk_tokens)
    rest = cost.step_ms * len(steps) + cost.token_us * 1e-3 * sum(new for _, new in steps)
    return rest + cost.prompt_us * 1e-3 * point.prompt_tokens + attention_ms(planner, point, cost.chunk_tokens, mode)


def planner_for(plan: ServingPlan, points: list[Point], *, tp_size: int, device: Device = H200) -> StepPlanner:
    """Planner of the plan's heads as placed, up to the longest of ``points``."""
    longest = num_pages(max(point.prompt_tokens for point in points)) * PAGE_SIZE
    order = plan.physical_to_logical if tp_size == plan.tp_size else plan.own_order
    pages = plan.budget_table(longest).pages
    return planner_of(plan, pages, order, tp_size, cost=device.cost, num_ctas=device.num_ctas)


def steps_of(point: Point, chunk_tokens: int) -> list[tuple[int, int]]:
    """(cached, new) tokens of every prefill step of a prompt that is alone; 0 or less: no chunks."""
    start, end = point.cached_tokens, point.prompt_tokens
    size = chunk_tokens if chunk_tokens > 0 else end
    return [(prefix, min(size, end - prefix)) for prefix in range(start, end, size)]


def attention_ms(planner: StepPlanner, point: Point, chunk_tokens: int, mode: Mode) -> float:
    """Predicted attention of all its steps, page selection included."""
    steps = steps_of(point, chunk_tokens)
    return sum(planner.predict(np.array([p]), np.array([n]), mode).step_ns for p, n in steps) * 1e-6
