# SPDX-License-Identifier: Apache-2.0
"""What the serving bench makes of records, counters and shapes; no server is started."""

import sys
from pathlib import Path
from typing import Any

import bench_serving
import cached_points
import dummy_model
import numpy as np
import pytest
import serving_arguments
import serving_points
from synthetic import is_one_sentence

from shplb.model import ModelShape, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.planning import PlanningError
from shplb.sglang.active_plan import check_plan

RECORD: dict[str, Any] = {
    "completed": 3, "total_input_tokens": 3 * 512, "cache_report": {"total_cached_tokens": 0}, "duration": 1.5,
    "ttfts": [0.125, 0.25, 0.5], "median_ttft_ms": 250.0, "p99_ttft_ms": 495.0, "median_itl_ms": 4.0,
    "input_throughput": 1024.0, "server_info": {"much": "more"},
}  # fmt: skip


def test_numbers_of_a_record() -> None:
    assert serving_points.point_of(RECORD, 512, 3) == {
        "ttft_p50_ms": 250.0, "ttft_p99_ms": 495.0, "itl_p50_ms": 4.0, "ttft_ms": [125.0, 250.0, 500.0],
        "input_tokens_per_s": 1024.0, "prompts": 3, "duration_s": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completed": 2}, "2 of 3 requests were answered"),
        ({"total_input_tokens": 1500}, "1500 prompt tokens were sent"),
        ({"cache_report": {"total_cached_tokens": 64}}, "64 prompt tokens came from the radix cache"),
        ({"ttfts": [0.5, 0.0, 0.5]}, "an answer had no text"),
        ({"completed": 0, "ttfts": []}, "0 of 3 requests were answered"),
    ],
)
def test_unusable_records_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(serving_points.PointFailedError, match=message) as caught:
        serving_points.point_of(RECORD | change, 512, 3)
    assert is_one_sentence(caught.value)


def test_path_is_what_came_between() -> None:
    before = {"sparse_steps": 2, "dense_steps": 1, "computed_row_pages": 50, "causal_row_pages": 100}
    after = {"sparse_steps": 5, "dense_steps": 1, "computed_row_pages": 80, "causal_row_pages": 400}
    assert serving_points.path_taken(before, after) == {"sparse_steps": 3, "dense_steps": 0, "density": 0.1}
    assert serving_points.path_taken(before, before)["density"] is None


def test_dense_steps_where_sparse_ones_belong() -> None:
    dense = {"sparse_steps": 0, "dense_steps": 4, "density": 1.0}
    serving_points.check_path("shplb", 8192, dense, 16384)
    serving_points.check_path("shplb", 16384, dense | {"sparse_steps": 1}, 16384)
    with pytest.raises(serving_points.WrongPathError, match="none of them was sparse") as caught:
        serving_points.check_path("shplb", 16384, dense, 16384)
    assert is_one_sentence(caught.value)


def row(variant: str, length: int, concurrency: int, ttft: float) -> dict[str, Any]:
    return {"variant": variant, "input_tokens": length, "concurrency": concurrency, "ttft_p50_ms": ttft}


def test_table_compares_with_the_best_stock_variant() -> None:
    rows = [row("fa3", 8192, 1, 200.0), row("stock", 8192, 1, 300.0), row("shplb", 8192, 1, 100.0)]
    rows += [row("stock", 512, 4, 20.0), row("shplb", 65536, 1, 500.0)]
    assert serving_points.table_of(rows, ["stock", "fa3", "shplb"]) == [
        ["tokens", "clients", "stock ms", "ratio", "fa3 ms", "ratio", "shplb ms", "ratio"],
        ["512", "4", "20.0", "1.00", "-", "-", "-", "-"],
        ["8192", "1", "300.0", "0.67", "200.0", "1.00", "100.0", "2.00"],
        ["65536", "1", "-", "-", "-", "-", "500.0", "-"],
    ]
    assert serving_points.table_of([], ["stock"]) == [["tokens", "clients", "stock ms", "ratio"]]


def test_table_keeps_cached_points_apart() -> None:
    rows = [row("stock", 8192, 1, 200.0), row("stock", 8192, 1, 20.0) | {"new_tokens": 64, "cached_tokens": 8128}]
    rows += [row("shplb", 8192, 1, 10.0) | {"new_tokens": 64, "cached_tokens": 8128}]
    assert serving_points.table_of(rows, ["stock", "shplb"])[1:] == [
        ["64 of 8192", "1", "20.0", "1.00", "10.0", "2.00"],
        ["8192", "1", "200.0", "1.00", "-", "-"],
    ]


POINTS = [cached_points.CachedPoint(1, 130), cached_points.CachedPoint(70, 130), cached_points.CachedPoint(2, 64)]


def test_cached_points_are_read() -> None:
    assert cached_points.parse_cached("1x130,70x130,2x64") == POINTS
    assert cached_points.parse_cached("") == []
    for text in ("64", "0x64", "64x", "64x1e5", "64x128k", "-1x64"):
        with pytest.raises(ValueError, match=text) as caught:
            cached_points.parse_cached(text)
        assert is_one_sentence(caught.value)


def test_prompts_of_cached_points_share_the_prefix_alone() -> None:
    drawn = [cached_points.draw_prompts(POINTS, index, 1024, 1) for index in range(len(POINTS))]
    assert drawn == [cached_points.draw_prompts(POINTS, index, 1024, 1) for index in range(len(POINTS))]
    assert drawn[0][0] == drawn[1][0]
    firsts = []
    for point, (prefix, prompts) in zip(POINTS, drawn, strict=True):
        assert len(prefix) == point.cached_tokens
        assert len(prompts) == cached_points.WARM_UP + cached_points.REQUESTS
        for prompt in prompts:
            assert len(prompt) == sum(point)
            assert prompt[: point.cached_tokens] == prefix
            assert all(0 <= token < 1024 for token in prompt)
            firsts.append((point.cached_tokens, prompt[point.cached_tokens]))
    assert len(set(firsts)) == len(firsts)
    with pytest.raises(serving_points.PointFailedError, match="the vocabulary has 20"):
        cached_points.draw_prompts(POINTS, 1, 20, 1)


def streamed(first_s: float, **changes: int) -> cached_points.Streamed:
    meta = {"prompt_tokens": 200, "cached_tokens": 128, "completion_tokens": 3} | changes
    return cached_points.Streamed([first_s, first_s + 0.25, first_s + 0.75], meta)


def test_numbers_of_a_cached_point() -> None:
    found = cached_points.cached_point_of([streamed(0.5), streamed(0.125), streamed(1.0)], POINTS[1], 64, 3)
    assert found == {
        "new_tokens": 70, "cached_tokens": 128, "ttft_p50_ms": 500.0, "ttft_p99_ms": 990.0, "itl_p50_ms": 375.0,
        "ttft_ms": [500.0, 125.0, 1000.0], "prompts": 3, "client": cached_points.CLIENT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "page_size"),
    [({"cached_tokens": 64}, 64), ({"cached_tokens": 192}, 64), ({}, 1), ({"completion_tokens": 2}, 64),
     ({"prompt_tokens": 199}, 64)],
)  # fmt: skip
def test_cached_points_with_another_cache_hit_are_refused(changes: dict[str, int], page_size: int) -> None:
    with pytest.raises(serving_points.PointFailedError, match="expected") as caught:
        cached_points.cached_point_of([streamed(0.5), streamed(0.5, **changes)], POINTS[1], page_size, 3)
    assert is_one_sentence(caught.value)


def test_commands_and_errors_hold_no_folders() -> None:
    command = "env A=/nonexistent /a/b/python -m sglang.launch_server --model-path '/x/my model' --tp 2"
    assert serving_points.public_command(command) == (
        "env A=/nonexistent python -m sglang.launch_server --model-path 'my model' --tp 2"
    )
    error = RuntimeError("the server ended with code 1; its log /a/b/stock.log ends:\nok\nXError: no\n  at /c/d.py")
    assert serving_points.sentence_of(error) == "the server ended with code 1; its log stock.log ends: XError: no"
    assert serving_points.sentence_of(RuntimeError("http://127.0.0.1:1/x answered 400: no")).startswith("http://127.")


def test_prompts_and_seeds_of_points(tmp_path: Path) -> None:
    points = [(512, 1), (512, 4), (4096, 1), (8192, 1), (9000, 4), (9000, 1)]
    assert [bench_serving.prompts_at(*point, 3, 15) for point in points] == [15, 12, 15, 3, 4, 3]
    seeds = set()
    for length, concurrency in [(512, 1), (512, 4), (2048, 1)]:
        options = serving_points.client_options(
            1, length=length, concurrency=concurrency, prompts=2, output_tokens=8, seed=2**32 - 1, file=tmp_path
        )
        seeds.add(int(options[options.index("--seed") + 1]))
    assert len(seeds) == 3
    assert max(seeds) < 2**32


@pytest.mark.parametrize("variant", ["--variants=stock,fast", "--lengths=8k", "--device=cuda", "--cached=64"])
def test_mistakes_on_the_command_line(
    variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_serving.py", "--device=cpu", variant])
    with pytest.raises(SystemExit):
        serving_arguments.arguments("")
    assert variant.partition("=")[0].replace("--device", "--model-path") in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("density", [0.1, 0.4])
def test_budgets_have_the_mean_asked_for(density: float) -> None:
    budgets = dummy_model.lognormal_budgets((32, 32), density, 0.8, 1)
    assert budgets.mean() == pytest.approx(density, rel=1e-6)
    assert 0.002 <= budgets.min() < density / 3
    assert density * 2 < budgets.max() <= 1.0


@pytest.mark.parametrize("name", dummy_model.SHAPES)
def test_shapes_and_their_plans_are_served(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model = dummy_model.write_dummy_model(tmp_path, name)
    shape = ModelShape.from_config(read_config(model))
    plan = dummy_model.spread_plan(model, tp_size=2, density=0.1, sigma=0.8, seed=1)
    for made in (plan, dummy_model.unplaced(plan)):
        made.save(tmp_path / "plan")
        check_plan(ServingPlan.load(tmp_path / "plan"), "plan", shape, fingerprint(model), 2)
        assert np.array_equal(made.budgets, plan.budgets)
    assert not dummy_model.unplaced(plan).permutes
    spread = [plan.rank_loads(plan.loads, contiguous=contiguous).max(axis=1).sum() for contiguous in (False, True)]
    assert spread[0] <= spread[1]
    with pytest.raises(PlanningError):
        dummy_model.spread_plan(model, tp_size=3, density=0.1, sigma=0.8, seed=1)


def test_every_token_of_the_dummy_tokenizer_has_a_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(dummy_model.write_dummy_model(tmp_path, "tiny") / "tokenizer.json"))
    size = dummy_model.SHAPES["tiny"]["vocab_size"]
    assert tokenizer.get_vocab_size() == size
    assert all(tokenizer.decode([token]) for token in range(size))
    assert tokenizer.decode([3, 1]) == "t3 t1"
