# SPDX-License-Identifier: Apache-2.0
"""Replay of traces: hand-computed times, the real planner's steps, and what placement gains."""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic import is_one_sentence, make_profile, make_shape

from shplb import StepPlanner
from shplb.model import ModelShape
from shplb.plan import ServingPlan
from shplb.planning import PlanningError, make_plan
from shplb.simulation import STEP_MS, TOKEN_US, StepCost, compare_placements, head_order, replay_trace
from shplb.traces import Trace, synthetic_trace

COST = StepCost(step_ms=10, token_us=0, prompt_us=0, decode_ms=2, chunk_tokens=128)


class FixedPlanner:
    """Attention of a step takes 1 ms per request, or 5 ms dense."""

    def predict(self, prefix: np.ndarray, new: np.ndarray, mode: str) -> Any:
        assert prefix.dtype == new.dtype == np.int64
        return SimpleNamespace(step_ns=(5_000_000 if mode == "dense" else 1_000_000) * len(new))


def make_trace(*requests: tuple[float, int, int], concurrency: int | None = None) -> Trace:
    """Requests (arrival in ms, prompt tokens, answer tokens)."""
    arrivals, inputs, outputs = zip(*requests, strict=True)
    lengths = np.array(inputs, dtype=np.int64)
    return Trace(np.array(arrivals) / 1e3, lengths, np.array(outputs), 0 * lengths, "by hand", concurrency)


def times_ms(trace: Trace, mode: Any = "auto", cost: StepCost = COST) -> tuple[list[float], float]:
    replay = replay_trace(FixedPlanner(), trace, cost, mode)  # type: ignore[arg-type]
    return [round(value, 6) for value in (replay.ttft_s * 1e3).tolist()], round(replay.duration_s * 1e3, 6)


def test_times_by_hand() -> None:
    """Steps 0-11 (128 tokens of a), 11-23 (64 of a and b), decode 23-27 (a ends); idle; 40-51 (c)."""
    trace = make_trace((0, 192, 3), (1, 64, 1), (40, 64, 1))
    assert times_ms(trace) == ([23, 22, 11], 51)
    assert times_ms(trace, "dense") == ([35, 34, 15], 55)
    replay = replay_trace(FixedPlanner(), trace, COST)  # type: ignore[arg-type]
    assert replay.step_indptr.tolist() == [0, 1, 3, 4]
    assert replay.prefix_lens.tolist() == [0, 128, 0, 0]
    assert replay.new_lens.tolist() == [128, 64, 64, 64]
    assert replay.num_decode_steps == 2


def test_prefill_waits_for_a_decode_step_only() -> None:
    """a is prefilled 0-11 and decodes until b waits at a step boundary: 25; b 25-36; then a's other steps."""
    assert times_ms(make_trace((0, 64, 20), (24, 64, 1))) == ([11, 12], 11 + 11 + 19 * 2)


def test_tokens_of_a_prompt_delay_its_own_first_token_only() -> None:
    trace = make_trace((0, 192, 3), (1, 64, 1), (40, 64, 1))
    late, duration = times_ms(trace, cost=replace(COST, prompt_us=10))
    assert (late, duration) == ([23 + 1.92, 22 + 0.64, 11 + 0.64], 51)


def test_step_costs_add_up() -> None:
    cost = StepCost(step_ms=3, token_us=100, prompt_us=0, decode_ms=0, chunk_tokens=-1)
    assert times_ms(make_trace((5, 1000, 50)), cost=cost) == ([3 + 100 + 1], 5 + 104)


def test_concurrency_holds_requests_back() -> None:
    """One at a time: each is sent when the one before has its last token, and only then its clock starts."""
    requests = ((0, 64, 2), (0, 64, 1), (100, 64, 1))
    assert times_ms(make_trace(*requests, concurrency=1)) == ([11, 11, 11], 111)
    assert times_ms(make_trace(*requests, concurrency=2)) == ([12, 12, 11], 111)
    at_once = ((0, 64, 2), (0, 64, 1), (0, 64, 1))
    assert times_ms(make_trace(*at_once, concurrency=2)) == ([12, 12, 11], 25)


def skewed_plan(seed: int, tp_size: int, layers: int = 4) -> ServingPlan:
    return make_plan(make_profile(make_shape(layers, 8, 4), seed=seed), tp_size=tp_size, density=0.25)


@pytest.mark.parametrize("seed", range(8))
def test_placed_is_never_worse_than_contiguous(seed: int) -> None:
    """All requests come at once, so that both see the same steps. Where a rank has few heads, the longest item takes as
    long as all together: little to gain then, and the sums that placement levels may miss it by a hair."""
    trace = synthetic_trace(f"requests=20,rate=inf,input=4096-32768,seed={seed}")
    rows = compare_placements(skewed_plan(seed, 2), trace, (1, 2, 4, 8), StepCost())
    assert [(row.tp_size, row.placement) for row in rows[:4]] == [
        (1, "dense"), (1, "contiguous"), (1, "placed"), (2, "dense"),
    ]  # fmt: skip
    for dense, contiguous, placed in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert dense.prefill_steps == contiguous.prefill_steps == placed.prefill_steps
        assert dense.makespan_s == dense.sparse_share == 0.0
        assert placed.makespan_s <= contiguous.makespan_s * 1.001
        assert placed.bubble <= contiguous.bubble + 0.001
        assert 1 - placed.bubble <= placed.balancedness + 1e-12  # waiting in a layer does not cancel out over layers
        if placed.tp_size in (1, 8):  # nothing to choose
            assert placed.makespan_s == pytest.approx(contiguous.makespan_s, rel=1e-12)
        if placed.tp_size == 2:
            assert placed.makespan_s < 0.98 * contiguous.makespan_s
            assert placed.attention_s < contiguous.attention_s < dense.attention_s
            assert placed.sparse_share > 0.85


def test_numbers_are_the_planners() -> None:
    """One request alone: its TTFT and the sums, from StepPlanner.predict step by step."""
    plan = skewed_plan(0, 2)
    row = compare_placements(
        plan, synthetic_trace("requests=1,rate=1,input=20000,output=9"), (2,), StepCost(prompt_us=0)
    )[2]
    planner = StepPlanner(
        num_kv_heads=8,
        head_dim=64,
        keep_pages=np.ascontiguousarray(plan.budget_table(20_032).pages),
        slot_groups=plan.physical_to_logical.reshape(4, 2, 4),
        rank=0,
    )
    pieces = ((0, 8192), (8192, 8192), (16384, 20000 - 16384))
    steps = [planner.predict(np.array([prefix]), np.array([new])) for prefix, new in pieces]
    attention = sum(step.step_ns for step in steps)
    ranks = sum(step.rank_makespan_ns.sum(axis=0) for step in steps)
    slowest = sum(step.rank_makespan_ns.max(axis=1).sum() for step in steps)
    assert row.ttft_mean_s == pytest.approx(3 * STEP_MS * 1e-3 + 20000 * TOKEN_US * 1e-6 + attention * 1e-9)
    assert row.attention_s == pytest.approx(attention * 1e-9)
    assert row.makespan_s == pytest.approx(slowest * 1e-9)
    assert row.bubble == pytest.approx(1 - ranks.mean() / slowest)
    assert row.balancedness == pytest.approx(ranks.mean() / ranks.max())
    assert (row.prefill_steps, row.decode_steps) == (3, 8)
    assert row.duration_s == pytest.approx(row.ttft_mean_s + 8 * 5e-3)


@pytest.mark.parametrize(("tokens", "measured_s"), [(8192, 0.125), (32768, 0.675), (65536, 1.83), (126000, 5.19)])
def test_dense_ttft_is_what_was_measured(tokens: int, measured_s: float) -> None:
    """SGLang's fa3 backend on two H200, a Llama-3.1-8B shape at TP=2, one request at a time."""
    profile = make_profile(ModelShape("LlamaForCausalLM", 32, 32, 8, 128, 4096))
    plan = make_plan(profile, tp_size=2, density=0.1)
    dense = compare_placements(plan, synthetic_trace(f"requests=1,rate=1,input={tokens}"), (2,), StepCost())[0]
    assert dense.ttft_mean_s == pytest.approx(measured_s, rel=0.05)


def test_head_order() -> None:
    plan = skewed_plan(0, 2)
    assert head_order(plan, 2, "placed") is plan.physical_to_logical
    assert np.all(head_order(plan, 2, "contiguous") == np.arange(8))
    other = head_order(plan, 4, "placed")
    assert np.array_equal(other, skewed_plan(0, 4).physical_to_logical)
    for tp_size in (0, 3, 16):
        with pytest.raises(PlanningError, match=f"8 KV heads can't be placed on {tp_size} ranks") as caught:
            head_order(plan, tp_size, "contiguous")
        assert is_one_sentence(caught.value)


def test_same_input_same_bytes() -> None:
    trace = synthetic_trace("requests=50,rate=3,input=1000-9000,output=1-40")
    plan = skewed_plan(1, 2)
    assert compare_placements(plan, trace, (2,), StepCost()) == compare_placements(plan, trace, (2,), StepCost())
    limited = replace(trace, concurrency=2)
    assert compare_placements(plan, limited, (2,), StepCost()) != compare_placements(plan, trace, (2,), StepCost())


def test_step_costs_are_checked() -> None:
    for change in ({"step_ms": -1.0}, {"token_us": float("nan")}, {"decode_ms": float("inf")}):
        with pytest.raises(ValueError, match=f"--{next(iter(change)).replace('_', '-')} is ") as caught:
            StepCost(**change)
        assert is_one_sentence(caught.value)


def test_thousands_of_steps_take_seconds() -> None:
    """About 2,500 prefill steps per row of a 32-layer model; far below the limit unless the machine is very busy."""
    profile = make_profile(ModelShape("LlamaForCausalLM", 32, 32, 8, 128, 4096))
    plan = make_plan(profile, tp_size=2, density=0.1)
    start = time.perf_counter()
    rows = compare_placements(
        plan, synthetic_trace("requests=500,rate=0.5,input=8192-65536,output=100"), (2,), StepCost()
    )
    assert all(row.prefill_steps > 2000 for row in rows)
    assert time.perf_counter() - start < 10
