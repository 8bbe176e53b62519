# SPDX-License-Identifier: Apache-2.0
"""Placing KV groups in the weight stream keeps the model's function, for every supported architecture."""

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from synthetic import is_one_sentence, make_serving_plan

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from tiny_models import logits  # noqa: E402

from shplb.model import ModelShape  # noqa: E402
from shplb.plan import ServingPlan  # noqa: E402
from shplb.sglang.refusal import StartRefusedError  # noqa: E402
from shplb.sglang.weights import check_complete, place_weights  # noqa: E402

_SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4}


def tiny_model(case: str) -> Any:
    family, _, multi_head = case.partition(" ")
    return tiny_models.tiny_model(family, **(_SIZES | ({"num_key_value_heads": 8} if multi_head else {})))


def plan_for(model: Any, seed: int = 1) -> ServingPlan:
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    plan = make_serving_plan(ModelShape.from_config(config), seed)
    assert len({tuple(row) for row in plan.physical_to_logical.tolist()}) == 3  # another order in every layer
    return plan


@pytest.mark.parametrize("case", [*tiny_models.CASES, "llama multi_head"])
def test_logits_stay(case: str) -> None:
    model = tiny_model(case)
    before, old = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: set[tuple[int, str, str]] = set()
    placed = dict(place_weights(old.items(), plan_for(model), seen))
    assert list(placed) == list(old)
    moved = {name for name in old if not torch.equal(placed[name], old[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    check_complete(seen, 3)
    model.load_state_dict(placed)
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("left_out", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_every_projection_matters(left_out: str) -> None:
    """The test above would notice a projection that stays where it was."""
    model = tiny_model("qwen2")
    before, old = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    placed = dict(place_weights(old.items(), plan_for(model), set()))
    model.load_state_dict(placed | {name: tensor for name, tensor in old.items() if left_out in name})
    assert (logits(model) - before).abs().max() > 1e-2


def test_slots_hold_the_groups_that_the_plan_names() -> None:
    plan = make_serving_plan(
        ModelShape("LlamaForCausalLM", 1, 4, 2, 2, 8), physical_to_logical=np.array([[1, 0]], "i4")
    )
    rows = torch.arange(8)[:, None].float()
    stream = [
        ("model.layers.0.self_attn.q_proj.weight", rows.expand(8, 8)),
        ("model.layers.0.self_attn.k_proj.bias", rows[:4, 0]),
        ("model.layers.0.self_attn.o_proj.weight", rows.T.expand(8, 8)),
        ("model.layers.0.self_attn.o_proj.bias", rows[:, 0]),
    ]
    q, k, o, bias = (tensor for _, tensor in place_weights(stream, plan, set()))
    assert q[:, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert k.tolist() == [2, 3, 0, 1]
    assert o[0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert bias.tolist() == rows[:, 0].tolist()


def refusal(stream: list[tuple[str, Any]], plan: ServingPlan) -> str:
    with pytest.raises(StartRefusedError) as caught:
        list(place_weights(stream, plan, set()))
    assert is_one_sentence(caught.value)
    return str(caught.value)


def test_fused_projections_are_refused() -> None:
    stream = [("model.layers.0.self_attn.qkv_proj.weight", torch.zeros(16, 8))]
    assert "qkv_proj.weight is fused" in refusal(stream, plan_for(tiny_model("llama")))


def test_quantised_projections_are_refused() -> None:
    plan = plan_for(tiny_model("llama"))
    for kind in ("qweight", "weight_scale", "weight_scale_inv", "weight_packed", "g_idx"):
        stream = [(f"model.layers.0.self_attn.q_proj.{kind}", torch.zeros(64, 64))]
        assert kind in refusal(stream, plan)


@pytest.mark.parametrize(
    ("projection", "shape"),
    [("q", (32, 64)), ("k", (64, 64)), ("v", (16, 64)), ("o", (64, 32)), ("o", (64,)), ("q", ())],
)
def test_wrong_shapes_are_refused(projection: str, shape: tuple[int, ...]) -> None:
    name = f"model.layers.1.self_attn.{projection}_proj.weight"
    assert name in refusal([(name, torch.zeros(shape))], plan_for(tiny_model("llama")))


def test_more_layers_than_the_plan_has_are_refused() -> None:
    name = "model.layers.3.self_attn.q_proj.weight"
    assert name in refusal([(name, torch.zeros(64, 64))], plan_for(tiny_model("llama")))


def test_incomplete_checkpoints_are_refused() -> None:
    model = tiny_model("llama")
    plan, state = plan_for(model), model.state_dict()
    for projection in "qkvo":
        seen: set[tuple[int, str, str]] = set()
        missing = f"layers.1.self_attn.{projection}_proj.weight"
        list(place_weights([item for item in state.items() if missing not in item[0]], plan, seen))
        with pytest.raises(StartRefusedError, match=rf"lacks layers.1.{projection}_proj \(1 such") as caught:
            check_complete(seen, 3)
        assert is_one_sentence(caught.value)


class Recorder(torch.nn.Module):
    """A model whose load_weights keeps what arrives, as SGLang's models take it: a lazy stream."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Any] = {}

    def load_weights(self, weights: Iterator[tuple[str, Any]], is_nextn: bool = False) -> set[str]:
        self.loaded = dict(weights)
        return set(self.loaded)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """install(plan, model, **args) runs install_head_placement under server arguments that name ``plan``."""
    from sglang.srt import server_args

    from shplb.sglang import weights

    def run(plan: ServingPlan, model: Any, *, profile: str | None = None, draft: bool = False) -> None:
        args = types.SimpleNamespace(shplb_plan="plan", shplb_profile=profile)
        monkeypatch.setattr(server_args, "get_global_server_args", lambda: args)
        monkeypatch.setattr(weights, "load_plan", lambda path: plan)
        weights.install_head_placement(model, types.SimpleNamespace(is_draft_model=draft))

    return run


def test_first_load_must_be_complete_and_updates_may_be_partial(install: Any) -> None:
    source = tiny_model("llama")
    plan, state, model = plan_for(source), source.state_dict(), Recorder()
    install(plan, model)
    assert model.load_weights(state.items()) == set(state)
    name = "model.layers.2.self_attn.q_proj.weight"
    first = model.loaded[name]
    assert not torch.equal(first, state[name])
    assert model.load_weights([(name, state[name])], is_nextn=False) == {name}
    assert list(model.loaded) == [name]
    torch.testing.assert_close(model.loaded[name], first, atol=0, rtol=0)


def test_incomplete_first_load_is_refused(install: Any) -> None:
    source, model = tiny_model("llama"), Recorder()
    install(plan_for(source), model)
    state = {name: tensor for name, tensor in source.state_dict().items() if "layers.0.self_attn.v" not in name}
    with pytest.raises(StartRefusedError, match=r"lacks layers\.0\.v_proj"):
        model.load_weights(state.items())


def test_models_that_are_left_alone(install: Any) -> None:
    plan = plan_for(tiny_model("llama"))
    same = np.tile(np.arange(4, dtype=np.int32), (3, 1))
    stays = make_serving_plan(plan.model, physical_to_logical=same)
    for options in ({"plan": stays}, {"plan": plan, "profile": "folder"}, {"plan": plan, "draft": True}):
        model = Recorder()
        install(model=model, **options)
        assert "load_weights" not in vars(model)
