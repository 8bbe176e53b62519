# SPDX-License-Identifier: Apache-2.0
"""Plans with replicas: files, prices, predictions, weights and server arguments."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from server_arguments import plan_of, refusal, server_args
from synthetic import assert_same, make_profile, make_serving_plan
from typer.testing import CliRunner

from shplb.cli import app
from shplb.container import FileFormatError, load_container, save_container
from shplb.device import H200
from shplb.model import ModelShape
from shplb.plan import FORMAT_VERSION, KIND, ServingPlan
from shplb.planning import PlanMaker, PlanningError
from shplb.prediction import predict_prompt
from shplb.rank_loads import RankLoads, imbalance
from shplb.replica_price import price_of
from shplb.sglang.weights import place_weights
from shplb.show import net_text
from shplb.simulation import StepCost, with_copies

SHAPE = ModelShape("LlamaForCausalLM", 6, 64, 4, 64, 4096)


def copied_plan(tp_size: int = 4, replicas: int = 1) -> ServingPlan:
    return PlanMaker(make_profile(SHAPE), tp_size=tp_size, replicas=replicas).plan(0.1)


def test_files_keep_replicas_and_old_files_have_none(tmp_path: Path) -> None:
    plan = copied_plan()
    plan.save(tmp_path / "plan")
    assert_same(ServingPlan.load(tmp_path / "plan"), plan)
    assert plan.num_slots == 2
    assert plan.copied.all()
    assert plan.permutes
    make_serving_plan(SHAPE).save(tmp_path / "old")
    tensors, facts = load_container(tmp_path / "old", KIND, FORMAT_VERSION)
    del facts["replicas"], facts["content_hash"]
    save_container(tmp_path / "old", KIND, 1, tensors, facts)
    assert ServingPlan.load(tmp_path / "old").replicas == 0


@pytest.mark.parametrize("slots", [[0, 1, 0, 2, 1, 3, 2, 2], [0, 0, 1, 2, 1, 3, 2, 3], [0, 1, 0, 1, 0, 2, 2, 3]])
def test_slots_of_a_damaged_file(slots: list[int], tmp_path: Path) -> None:
    order = np.tile(np.array(slots, dtype=np.int32), (SHAPE.num_layers, 1))
    msgspec.structs.replace(copied_plan(), physical_to_logical=order).save(tmp_path / "plan")
    with pytest.raises(FileFormatError, match="'physical_to_logical' holds values out of range"):
        ServingPlan.load(tmp_path / "plan")


def test_replicas_balance_the_ranks() -> None:
    loads = RankLoads.of(copied_plan())
    names = [name for name, _ in loads.rows]
    assert names == ["contiguous", "placed", "replicas"]
    assert imbalance(loads.placed) < 1 + 0.4 * (imbalance(loads.whole) - 1)
    assert (loads.bound <= loads.placed.max(axis=1)).all()
    np.testing.assert_array_equal(loads.placed.sum(axis=1), loads.whole.sum(axis=1))
    # In short prompts a rank takes as long as its longest list, which no placement shortens.
    prediction = predict_prompt(copied_plan(), 131072)
    assert prediction.bound_ms <= prediction.placed_ms < prediction.whole_ms


def test_price() -> None:
    price = price_of(copied_plan(tp_size=2))
    assert price.factor == 1.5
    assert price.whole_kv_bytes_per_token == 2 * 2 * 64 * 6 * 2
    assert price.kv_bytes_per_token == 3 * 2 * 64 * 6 * 2
    assert price.weight_bytes - price.whole_weight_bytes == (16 + 1) * 2 * 64 * 4096 * 6 * 2
    assert price_of(make_serving_plan(SHAPE)).factor == 1.0


def test_whether_replicas_pay_is_said() -> None:
    prediction = predict_prompt(copied_plan(), 131072)
    flops = price_of(copied_plan()).flops_per_token * 131072
    assert H200.gemm_flops_per_s is not None
    assert prediction.projections_ms == pytest.approx(flops / H200.gemm_flops_per_s * 1e3)
    saved = prediction.whole_ms - prediction.placed_ms
    assert prediction.replicas_save_ms == pytest.approx(saved - prediction.projections_ms)
    assert net_text(prediction, 2.0).endswith(": 2.0 ms faster")
    assert net_text(prediction, -2.0).endswith(": 2.0 ms slower, so leave --replicas out")
    unknown = predict_prompt(copied_plan(), 131072, dataclasses.replace(H200, gemm_flops_per_s=None))
    assert unknown.projections_ms is unknown.replicas_save_ms is None
    whole = predict_prompt(make_serving_plan(SHAPE), 131072)
    assert whole.projections_ms == whole.replicas_save_ms == 0.0


def test_simulation_charges_copies_what_the_plan_says() -> None:
    plan, cost = copied_plan(), StepCost()
    added_us = with_copies(cost, plan, H200).token_us - cost.token_us
    assert added_us * 131072 * 1e-3 == pytest.approx(predict_prompt(plan, 131072).projections_ms)
    assert with_copies(cost, plan, dataclasses.replace(H200, gemm_flops_per_s=None)) == cost


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp_size": 4, "replicas": 2}, "--replicas is 2, expected 0 to 1"),
        ({"tp_size": 1, "replicas": 1}, "--replicas is 1, expected 0 to 0"),
        ({"tp_size": 2, "replicas": -1}, "--replicas is -1"),
        ({"tp_size": 2, "replicas": 1, "balance_aware": True}, "leave one of them out|leave one out"),
    ],
)
def test_replicas_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        PlanMaker(make_profile(SHAPE), **options)


def test_commands_show_replicas(tmp_path: Path) -> None:
    make_profile(SHAPE).save(tmp_path / "profile")
    out, run = tmp_path / "plan", CliRunner().invoke
    options = ["plan", str(tmp_path / "profile"), "--tp", "4", "--density", "0.1", "--replicas", "1", "--out", str(out)]
    facts = json.loads(run(app, [*options, "--json"]).stdout)
    assert facts["replicas"] == 1
    assert facts["replica_price"]["factor"] == 2.0
    assert facts["imbalance"]["replicas"] < facts["imbalance"]["placed"] <= facts["imbalance"]["contiguous"]
    shown = run(app, ["show", str(out)])
    assert shown.exit_code == 0
    assert "price of 1 replica slot(s) per rank and layer: KV memory per token x2.00" in " ".join(shown.output.split())
    simulated = run(
        app, ["simulate", str(out), "--synthetic", "requests=3,rate=1,input=16384", "--tp", "2,4", "--json"]
    )
    rows = [(row["tp_size"], row["placement"]) for row in json.loads(simulated.stdout)["results"]]
    assert rows == [(tp, name) for tp in (2, 4) for name in ("dense", "contiguous", "placed", "replicas")]
    page = tmp_path / "page.html"
    assert run(app, ["report", str(out), "--out", str(page)]).exit_code == 0
    assert "with copies: replicas" in page.read_text()


def test_copies_in_the_weight_stream() -> None:
    """Both copies together do what the one group did, bit by bit where one product is added to zeros."""
    shape = ModelShape("LlamaForCausalLM", 1, 4, 2, 2, 8)
    plan = make_serving_plan(shape, tp_size=2, replicas=1, physical_to_logical=np.array([[0, 1, 0, 1]], "i4"))
    rows = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    stream = [
        ("model.layers.0.self_attn.q_proj.weight", rows),
        ("model.layers.0.self_attn.k_proj.weight", rows[:4]),
        ("model.layers.0.self_attn.v_proj.bias", rows[:4, 0]),
        ("model.layers.0.self_attn.o_proj.weight", rows),
    ]
    before = [tensor.clone() for _, tensor in stream]
    q, k, v, o = (tensor for _, tensor in place_weights(stream, plan, set()))
    assert torch.equal(q, torch.cat([rows, rows]))
    assert torch.equal(k, torch.cat([rows[:4], rows[:4]]))
    assert torch.equal(v, torch.cat([rows[:4, 0], rows[:4, 0]]))
    assert torch.equal(o[:, :8] + o[:, 8:], rows)
    assert torch.equal(2 * o[:, :8], rows)
    assert all(torch.equal(tensor, old) for (_, tensor), old in zip(stream, before, strict=True))
    assert plan.served_heads == {"num_key_value_heads": 4, "num_attention_heads": 8, "head_dim": 2}


def test_only_copied_columns_are_halved() -> None:
    shape = ModelShape("LlamaForCausalLM", 1, 4, 4, 2, 8)
    order = np.array([[0, 1, 2, 0, 2, 3]], "i4")
    plan = make_serving_plan(shape, tp_size=2, replicas=1, physical_to_logical=order)
    stream = [("model.layers.0.self_attn.o_proj.weight", torch.ones(8, 8))]
    ((_, o),) = place_weights(stream, plan, set())
    assert o[0].tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1]


@pytest.mark.usefixtures("server_environment")
def test_the_server_builds_the_model_for_all_slots(llama: Path, tmp_path: Path) -> None:
    order = np.tile(np.array([0, 1, 2, 0, 2, 3], "i4"), (2, 1))
    plan_of(llama, tp_size=2, replicas=1, physical_to_logical=order).save(tmp_path / "plan")
    args = server_args(llama, tp_size=2, shplb_plan=str(tmp_path / "plan"), json_model_override_args='{"mine": 1}')
    for each in (args, dataclasses.replace(args)):
        config = each.get_model_config()
        assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (6, 12, 16)
        assert config.get_num_kv_heads(2) == 3
        assert config.hf_config.mine == 1
    # Another plan for resolved arguments: the model's own heads are back.
    plan_of(llama, tp_size=2).save(tmp_path / "whole")
    whole = dataclasses.replace(args, shplb_plan=str(tmp_path / "whole"))
    assert whole.get_model_config().num_key_value_heads == 4
    assert "num_attention_heads" in refusal(
        llama, shplb_plan=str(tmp_path / "whole"), tp_size=2, json_model_override_args='{"num_attention_heads": 4}'
    )
