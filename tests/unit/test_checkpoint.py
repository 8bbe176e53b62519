# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose heads can't be moved are refused from the headers of their files, before a rank starts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from server_arguments import CONFIG, attention_weights, plan_of, refusal, server_args, write_model
from synthetic import is_one_sentence

from shplb.sglang.checkpoint import check_checkpoint
from shplb.sglang.refusal import StartRefusedError

Weights = dict[str, np.ndarray]
Q = "model.layers.1.self_attn.q_proj.weight"

pytestmark = pytest.mark.usefixtures("server_environment")


def without_q(weights: Weights) -> Weights:
    return {name: array for name, array in weights.items() if name != Q}


_BAD: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "lacks": (without_q, "the checkpoint lacks layers.1.q_proj (1 such weights in all)"),
    "none": (lambda _: {"x": np.zeros(3)}, "the checkpoint lacks layers.0.q_proj (8 such weights in all)"),
    "fused": (lambda w: w | {"model.layers.0.self_attn.qkv_proj.weight": np.zeros(3)}, "is fused"),
    "packed": (lambda w: w | {"model.layers.0.self_attn.k_proj.qweight": np.zeros(3)}, "is quantised"),
    "shape": (lambda w: w | {Q: np.zeros((64, 128))}, "has shape [64, 128], the plan expects 128 entries along axis 0"),
    "flat": (lambda w: w | {"model.layers.0.self_attn.o_proj.weight": np.zeros(128)}, "entries along axis 1"),
    "deep": (lambda w: w | {"model.layers.2.self_attn.q_proj.weight": w[Q]}, "the plan has 2 layers"),
}


@pytest.mark.parametrize(("change", "expected"), _BAD.values(), ids=_BAD)
def test_refused_before_any_rank_starts(
    llama: Path, tmp_path: Path, change: Callable[[Weights], Weights], expected: str
) -> None:
    model = write_model(tmp_path / "m")
    save_file(change(attention_weights(CONFIG)), model / "model.safetensors")
    plan_of(model).save(tmp_path / "plan")
    assert expected in refusal(model, shplb_plan=str(tmp_path / "plan"))


def test_a_plan_that_moves_nothing_takes_any_names(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    save_file({"x": np.zeros(3)}, model / "model.safetensors")
    plan = plan_of(model)
    plan_of(model, physical_to_logical=plan.own_order).save(tmp_path / "plan")
    assert server_args(model, shplb_plan=str(tmp_path / "plan")).enable_shplb


def test_files_of_the_index_count(tmp_path: Path) -> None:
    """Shards, a file in another form that the index does not name, and a shard that is missing."""
    model = write_model(tmp_path / "m")
    plan, weights = plan_of(model), attention_weights(CONFIG)
    names = sorted(weights)
    for part, chosen in (("a", names[:3]), ("b", names[3:])):
        save_file({name: weights[name] for name in chosen}, model / f"{part}.safetensors")
    save_file({"model.layers.0.self_attn.qkv_proj.weight": np.zeros(3)}, model / "model.safetensors")
    files = {name: f"{'a' if name in names[:3] else 'b'}.safetensors" for name in names}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    check_checkpoint(model, plan)
    (model / "b.safetensors").unlink()
    with pytest.raises(StartRefusedError, match=r"b\.safetensors can't be read") as caught:
        check_checkpoint(model, plan)
    assert is_one_sentence(str(caught.value).replace("; download", ", download"))


def test_folders_without_safetensors_are_left_to_the_ranks(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    plan = plan_of(model)
    (model / "model.safetensors").unlink()
    check_checkpoint(model, plan)
