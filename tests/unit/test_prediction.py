# SPDX-License-Identifier: Apache-2.0
"""Predicted attention of a prompt: the step planner's own numbers, chunk by chunk, and a bound below all placements."""

import itertools

import msgspec
import numpy as np
import pytest
from synthetic import LENGTHS, make_profile, make_serving_plan, make_shape

from shplb import CostModel, StepPlanner
from shplb.device import Device
from shplb.plan import ServingPlan
from shplb.planning import make_plan
from shplb.prediction import placed_ms, predict_prompt
from shplb.sparsity import num_pages

PLAN = make_plan(make_profile(make_shape(layers=3, kv_heads=4, group=2)), tp_size=2, density=0.1)


def step_by_step_ms(plan: ServingPlan, tokens: int, order: np.ndarray) -> tuple[float, float]:
    """(as planned, dense) of chunks of 8192, through ``StepPlanner.predict``."""
    planner = StepPlanner(
        num_kv_heads=plan.model.num_kv_heads,
        head_dim=plan.model.head_dim,
        keep_pages=np.ascontiguousarray(plan.budget_table(num_pages(tokens) * 64).pages),
        slot_groups=np.ascontiguousarray(order.reshape(len(order), plan.tp_size, -1)),
        rank=0,
    )
    steps = [
        planner.predict(np.array([start]), np.array([min(8192, tokens - start)])) for start in range(0, tokens, 8192)
    ]
    return sum(step.step_ns for step in steps) / 1e6, sum(step.dense_ns for step in steps) / 1e6


@pytest.mark.parametrize("tokens", [100, 8192, 8193, 16384, 100_000])
def test_times_are_those_of_the_step_planner(tokens: int) -> None:
    found = predict_prompt(PLAN, tokens)
    own = np.tile(np.arange(4, dtype=np.int32), (3, 1))
    contiguous, dense = step_by_step_ms(PLAN, tokens, own)
    placed, _ = step_by_step_ms(PLAN, tokens, PLAN.physical_to_logical)
    assert (found.contiguous_ms, found.placed_ms) == (pytest.approx(contiguous), pytest.approx(placed))
    assert found.dense_ms == pytest.approx(dense)
    assert placed_ms(PLAN, tokens) == found.placed_ms
    assert found.chunks == -(-tokens // 8192)
    assert found.extrapolated == (tokens > LENGTHS[-1])


def test_default_is_the_longest_profiled_length() -> None:
    assert predict_prompt(PLAN) == predict_prompt(PLAN, LENGTHS[-1])


def test_no_placement_is_faster_than_the_bound() -> None:
    slow = Device(CostModel(dense_kv_tile_ns=20_000))  # dense, so that every chunk runs sparse, whatever the placement
    splits = [np.array([0, *pair, *(set(range(1, 4)) - set(pair))]) for pair in itertools.combinations(range(1, 4), 1)]
    for seed in range(20):
        plan = make_serving_plan(make_shape(layers=1, kv_heads=4, group=16), seed=seed, tp_size=2)
        times = []
        for split in splits:
            order = split[None].astype(np.int32)
            found = predict_prompt(msgspec.structs.replace(plan, physical_to_logical=order), 65536, slow)
            assert found.sparse_chunks == found.chunks == 8
            times.append(found.placed_ms)
        assert 0.9 * min(times) < found.bound_ms <= min(times)


def test_a_prompt_that_runs_dense_has_one_time() -> None:
    found = predict_prompt(PLAN, 1000)
    assert found.sparse_chunks == 0
    assert found.dense_ms == found.contiguous_ms == found.placed_ms == found.bound_ms


@pytest.mark.parametrize("tokens", [0, -1, (1 << 20) + 1])
def test_lengths_that_are_no_prompt(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"--at-tokens is {tokens}, expected"):
        predict_prompt(PLAN, tokens)
