# SPDX-License-Identifier: Apache-2.0
"""What a server takes besides attention, fitted to measured times: found again, and right for what it never saw."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import is_one_sentence, make_profile, make_shape

from shplb.planning import make_plan
from shplb.simulation import StepCost, compare_placements
from shplb.step_fit import Point, fit_step_cost, planner_for, predict_ttft_ms, read_points, steps_of
from shplb.traces import Trace, TraceError

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "bench" / "results" / "serving.json"
PLAN = make_plan(make_profile(make_shape(layers=4, kv_heads=8, group=4)), tp_size=2, density=0.1)
LENGTHS = ((512, 0), (4096, 0), (20000, 0), (60000, 0), (60100, 60000))


@pytest.fixture(scope="module")
def bench() -> Any:
    """bench/bench_simulation.py, which draws the plan that was served."""
    import bench_simulation

    return bench_simulation


def points(cost: StepCost, variant: str = "fa3") -> list[Point]:
    empty = [Point(tokens, cached, 1.0, variant) for tokens, cached in LENGTHS]
    planner = planner_for(PLAN, empty, tp_size=2)
    mode = "dense" if variant == "fa3" else "auto"
    return [
        Point(point.prompt_tokens, point.cached_tokens, predict_ttft_ms(planner, point, cost, mode), variant)  # type: ignore[arg-type]
        for point in empty
    ]


def test_steps() -> None:
    assert steps_of(Point(20000, 0, 1.0), 8192) == [(0, 8192), (8192, 8192), (16384, 3616)]
    assert steps_of(Point(20000, 19000, 1.0), 8192) == [(19000, 1000)]
    assert steps_of(Point(20000, 0, 1.0), -1) == [(0, 20000)]


def test_a_known_cost_is_found_again() -> None:
    cost = StepCost(step_ms=9.0, token_us=20.0, prompt_us=0.3)
    found = fit_step_cost(PLAN, points(cost), tp_size=2)
    assert (found.cost.step_ms, found.cost.token_us) == (pytest.approx(9.0, rel=0.01), pytest.approx(20.0, rel=0.01))
    assert found.cost.prompt_us == pytest.approx(0.3, rel=0.01)
    assert (found.points, found.worst_error < 0.01) == (len(LENGTHS), True)


def test_sparse_points_are_not_fitted() -> None:
    cost = StepCost(step_ms=9.0, token_us=20.0, prompt_us=0.3)
    odd = [Point(point.prompt_tokens, point.cached_tokens, 5 * point.ttft_ms, "shplb") for point in points(cost)]
    assert fit_step_cost(PLAN, [*points(cost), *odd], tp_size=2) == fit_step_cost(PLAN, points(cost), tp_size=2)
    with pytest.raises(TraceError, match="0 points were served by stock SGLang, expected 4") as caught:
        fit_step_cost(PLAN, odd, tp_size=2)
    assert is_one_sentence(str(caught.value).replace(": measure", "; measure"))


@pytest.mark.parametrize("tokens", [5000, 30000])
def test_prediction_is_what_the_simulator_says(tokens: int) -> None:
    length = np.array([tokens])
    trace = Trace(np.zeros(1), length, np.ones(1, dtype=np.int64), 0 * length, "one prompt")
    row = next(row for row in compare_placements(PLAN, trace, (2,), StepCost()) if row.placement == "placed")
    point = Point(tokens, 0, 1.0, "shplb")
    found = predict_ttft_ms(planner_for(PLAN, [point], tp_size=2), point, StepCost())
    assert found == pytest.approx(1e3 * row.ttft_mean_s)


def test_measured_ttft_on_two_h200(bench: Any) -> None:
    """Fitted to stock SGLang's rows, S-HPLB's are within 15 %."""
    served = json.loads(SERVING.read_text())
    plan, measured = bench.served_plan(served["arguments"]), read_points(SERVING)
    found = bench.judge(plan, 2, measured, [point for point in measured if point.variant == "shplb"])
    off = {(row["prompt_tokens"], row["cached_tokens"]): row["off"] for row in found["rows"]}
    assert len(off) == 10
    assert max(map(abs, off.values())) < 0.15
    assert max(abs(off[tokens, 0]) for tokens in (4096, 8192, 32768, 126000)) < 0.06
    cost = found["fit"]["cost"]
    assert (round(cost["step_ms"], 1), round(cost["token_us"], 1)) == (StepCost().step_ms, StepCost().token_us)


def test_measured_ttft_of_long_prompts_from_short_ones(bench: Any) -> None:
    served = json.loads(SERVING.read_text())
    measured = read_points(SERVING)
    short = [point for point in measured if point.prompt_tokens - point.cached_tokens <= 8192]
    long = [point for point in measured if point not in short]
    assert {point.prompt_tokens for point in long} == {32768, 126000}
    found = bench.judge(bench.served_plan(served["arguments"]), 2, short, long)
    assert max(abs(row["off"]) for row in found["rows"]) < 0.10


def test_output_of_sglangs_benchmark(tmp_path: Path) -> None:
    record = {"request_rate": float("inf"), "max_concurrency": 1, "ttfts": [0.5, 0.25], "input_lens": [4096, 2048]}
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps(record | {"output_lens": [8, 8], "cached_tokens": [0, 1024]}))
    assert read_points(path) == [Point(4096, 0, 500.0), Point(2048, 1024, 250.0)]
    path.write_text(json.dumps(record | {"output_lens": [8, 8], "max_concurrency": 4}))
    with pytest.raises(TraceError, match="run the benchmark with one client"):
        read_points(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"bench": "serving"}', '{"bench": "serving", "rows": [{}]}'])
def test_files_that_hold_no_times(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(TraceError) as caught:
        read_points(tmp_path / "file")
    assert "\n" not in str(caught.value)
