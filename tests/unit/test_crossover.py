# SPDX-License-Identifier: Apache-2.0
"""Crossover, KV cost and the device of a prediction."""

import os
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_profile, make_serving_plan, make_shape

from shplb.container import FileFormatError
from shplb.crossover import crossover_tokens
from shplb.device import H200, Device, choose_device
from shplb.kv_cost import KvCost
from shplb.plan_planner import planner_of
from shplb.planner import CostModel
from shplb.planning import make_plan
from shplb.prediction import predict_prompt
from shplb.rates import GpuRates, fields_of
from shplb.show import kv_text, reach_text

PLAN = make_plan(make_profile(make_shape(layers=2, kv_heads=8, group=4)), tp_size=2, density=0.1)


@pytest.mark.parametrize("layer_ns", [0, 41086, 400_000, 4_000_000])
def test_crossover_is_where_prompts_turn_sparse(layer_ns: int) -> None:
    device = Device(CostModel(layer_ns=layer_ns))
    found = crossover_tokens(PLAN, device, longest=1 << 17)
    assert found is not None
    for tokens in {found, found + 64, found + 1000, 2 * found, 65536, 131072}:
        if found <= tokens <= 131072:
            prediction = predict_prompt(PLAN, tokens, device)
            assert prediction.sparse_chunks >= 1
            assert prediction.placed_ms < prediction.dense_ms
    if found > 64:
        step = 64 if found <= 8192 else 8192
        assert predict_prompt(PLAN, found - step, device).sparse_chunks == 0


def test_no_crossover() -> None:
    slow = Device(CostModel(layer_ns=10**8))
    assert crossover_tokens(PLAN, slow, longest=1 << 15) is None


def test_more_expensive_layers_cross_later() -> None:
    found = [crossover_tokens(PLAN, Device(CostModel(layer_ns=ns)), longest=1 << 17) for ns in (0, 41086, 400_000)]
    assert found == sorted(found)  # type: ignore[type-var]
    assert found[0] != found[2]


def test_number_of_ctas_matters() -> None:
    keep = PLAN.budget_table(16384).pages
    step = np.array([0]), np.array([16384])
    wide, narrow = (planner_of(PLAN, keep, PLAN.own_order, 2, num_ctas=n).predict(*step).dense_ns for n in (132, 66))
    assert narrow == pytest.approx(2 * wide, rel=1e-3)
    assert predict_prompt(PLAN, 8192, Device(num_ctas=66)).dense_ms > 1.9 * predict_prompt(PLAN, 8192).dense_ms


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_kv_cost_of_a_padded_model(tp_size: int) -> None:
    """3 groups and one of padding, 2 layers, head_dim 64: 2 * 64 * 2 bytes a group and layer."""
    plan = make_serving_plan(make_shape(layers=2, kv_heads=4, group=2, inert=(3,)), tp_size=tp_size)
    cost = KvCost.of(plan)
    assert cost.bytes_per_token_rank == 2 * (4 // tp_size) * 256
    assert cost.padding_bytes == pytest.approx(cost.bytes_per_token_rank / 4)
    assert cost.replica_bytes == 0
    assert "padding" in kv_text(cost)
    assert "none of it padding or replicas" in kv_text(KvCost.of(PLAN))


def test_reach_names_the_profiled_lengths() -> None:
    assert "profiled at 1024 to 16384 tokens; above, budgets are extrapolated" in reach_text(PLAN)


def make_rates(gpu: str, head_dim: int = 64, group_size: int = 4, **cost: int) -> GpuRates:
    return GpuRates(
        gpu, 108, "bfloat16", head_dim, group_size, "fa3", fields_of(CostModel(**cost)), 9000, [], {"shplb": "0"}
    )


def test_device_is_the_one_calibrated_last(tmp_path: Path) -> None:
    assert choose_device(PLAN.model, None, tmp_path / "nowhere") is H200
    make_rates("old", layer_ns=1).save(tmp_path / "b.json")
    make_rates("new", layer_ns=2).save(tmp_path / "a.json")
    make_rates("other heads", head_dim=128).save(tmp_path / "c.json")
    (tmp_path / "d.json").write_text("{}")
    os.utime(tmp_path / "b.json", (1, 1))
    found = choose_device(PLAN.model, None, tmp_path)
    assert (found.cost.layer_ns, found.num_ctas) == (2, 108)
    assert "measured on new" in found.origin
    assert choose_device(PLAN.model, tmp_path / "b.json", tmp_path).cost.layer_ns == 1


def test_rates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make_rates("wide", head_dim=128).save(tmp_path / "wide.json")
    with pytest.raises(ValueError, match="holds rates for head_dim 128 and 4 query heads"):
        choose_device(PLAN.model, tmp_path / "wide.json", tmp_path)
    with pytest.raises(FileFormatError, match="run `shplb calibrate` again"):
        choose_device(PLAN.model, tmp_path / "missing.json", tmp_path)
