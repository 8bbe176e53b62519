# SPDX-License-Identifier: Apache-2.0
"""Real ServerArgs of the patched SGLang on tiny model folders; the fixtures are in conftest.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import is_one_sentence, make_serving_plan

from shplb.model import ModelShape, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.sglang.refusal import StartRefusedError

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "hidden_size": 128, "head_dim": 16, "intermediate_size": 96, "vocab_size": 128,
    "max_position_embeddings": 4096, "rope_theta": 1e4, "torch_dtype": "float32", "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def write_model(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(attention_weights(config), folder / "model.safetensors")
    return folder


def attention_weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Projections of every layer, zeros; of a model without sense in its config, those of CONFIG."""
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    sizes = [config.get(name) for name in names]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return attention_weights(CONFIG)
    layers, heads, kv_heads, head_dim, hidden = sizes
    rows = {"q": heads * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    made = {}
    for layer in range(layers):
        name = f"model.layers.{layer}.self_attn"
        made |= {f"{name}.{which}_proj.weight": np.zeros((size, hidden), np.float32) for which, size in rows.items()}
        made[f"{name}.o_proj.weight"] = np.zeros((hidden, rows["q"]), np.float32)
    return made


def plan_of(model: Path, **changes: Any) -> ServingPlan:
    config = read_config(model)
    return make_serving_plan(ModelShape.from_config(config), **({"fingerprint": fingerprint(model)} | changes))


def server_args(model: Path, **fields: Any) -> Any:
    from sglang.srt.server_args import ServerArgs

    return ServerArgs(model_path=str(model), **({"device": "cpu", "enable_shplb": True} | fields))


def refusal(model: Path, **fields: Any) -> str:
    with pytest.raises(StartRefusedError) as caught:
        server_args(model, **fields)
    assert is_one_sentence(caught.value), caught.value
    assert str(caught.value).startswith("S-HPLB can't start: ")
    return str(caught.value)
