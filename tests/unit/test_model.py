# SPDX-License-Identifier: Apache-2.0
"""Attention shapes and fingerprints of Hugging Face folders."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import is_one_sentence

from shplb.model import (
    Fingerprint,
    ModelShape,
    UnsupportedModelError,
    config_hash,
    fingerprint,
    read_config,
    weights_hash,
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 2048,
    "rope_theta": 5e5,
    "torch_dtype": "bfloat16",
}


def write_model(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    rng = np.random.default_rng(seed)
    for shard in range(2):
        weights = {f"w{shard}": rng.normal(size=(300, 200)).astype(np.float32)}
        save_file(weights, folder / f"model-{shard}.safetensors")
    return folder


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        ModelShape.from_config(config)
    assert is_one_sentence(caught.value), caught.value
    return str(caught.value)


def test_shape_of_a_llama() -> None:
    shape = ModelShape.from_config(LLAMA)
    assert shape == ModelShape("LlamaForCausalLM", 16, 32, 8, 64, 2048)
    assert shape.group_size == 4


def test_explicit_and_default_fields() -> None:
    assert ModelShape.from_config(LLAMA | {"head_dim": 128}).head_dim == 128
    assert ModelShape.from_config(LLAMA | {"head_dim": None}).head_dim == 64
    assert ModelShape.from_config({**LLAMA, "num_key_value_heads": None}).num_kv_heads == 32
    assert ModelShape.from_config(LLAMA | {"shplb_inert_kv_heads": [6, 7]}).inert_kv_heads == (6, 7)


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_supported_architectures(architecture: str) -> None:
    assert ModelShape.from_config(LLAMA | {"architectures": [architecture]}).architecture == architecture


@pytest.mark.parametrize(
    "architectures",
    [["DeepseekV3ForCausalLM"], ["Gemma2ForCausalLM"], ["MllamaForConditionalGeneration"],
     ["T5ForConditionalGeneration"], ["LlamaModel"], ["Qwen3MoeForCausalLM"], [], None],
)  # fmt: skip
def test_other_architectures_are_refused(architectures: list[str] | None) -> None:
    message = refusal(LLAMA | {"architectures": architectures})
    assert "without --enable-shplb" in message
    assert (architectures or ["unknown"])[0] in message


@pytest.mark.parametrize(
    "window", [{}, {"sliding_window": None}, {"sliding_window": 4096, "use_sliding_window": False}]
)
@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2ForCausalLM"])
def test_unused_sliding_window_is_fine(architecture: str, window: dict[str, Any]) -> None:
    ModelShape.from_config(LLAMA | {"architectures": [architecture]} | window)


@pytest.mark.parametrize("window", [{"sliding_window": 4096}, {"sliding_window": 4096, "use_sliding_window": True}])
@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "Qwen2ForCausalLM"])
def test_sliding_window_is_refused(architecture: str, window: dict[str, Any]) -> None:
    assert "sliding_window=4096" in refusal(LLAMA | {"architectures": [architecture]} | window)


@pytest.mark.parametrize(
    "broken",
    [{"num_key_value_heads": 5}, {"num_attention_heads": 0}, {"num_hidden_layers": None}, {"hidden_size": "2048"},
     {"hidden_size": -1}, {"num_key_value_heads": 64}, {"shplb_inert_kv_heads": [8]}, {"shplb_inert_kv_heads": [-1]}],
)  # fmt: skip
def test_impossible_shapes_are_refused(broken: dict[str, Any]) -> None:
    refusal(LLAMA | broken)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '"x"', b"\xff\xfe"])
def test_unreadable_config(tmp_path: Path, text: str | bytes | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UnsupportedModelError) as caught:
        read_config(tmp_path)
    assert is_one_sentence(caught.value)


def test_fingerprint_stays_for_a_copy(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = fingerprint(model)
    shutil.copytree(model, tmp_path / "elsewhere" / "copy")
    (tmp_path / "elsewhere" / "copy" / "README.md").write_text("hello")
    assert fingerprint(tmp_path / "elsewhere" / "copy") == before
    changed = {"torch_dtype": "float32", "_name_or_path": "x", "transformers_version": "9", "use_cache": False}
    assert config_hash(LLAMA | changed) == before.config
    assert config_hash(dict(reversed(LLAMA.items()))) == before.config


def test_fingerprint_changes_with_the_weights(tmp_path: Path) -> None:
    before = fingerprint(write_model(tmp_path / "a", seed=1))
    after = fingerprint(write_model(tmp_path / "b", seed=2))
    assert before.config == after.config
    assert before.weights != after.weights
    assert before.conflicts(after)


def test_fingerprint_sees_a_change_in_any_shard(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    before = weights_hash(model)
    shard = model / "model-1.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2 + 100] ^= 1
    shard.write_bytes(data)
    assert weights_hash(model) != before


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 17}, {"rope_theta": 1e4}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
     {"shplb_inert_kv_heads": [7]}, {"vocab_size": 5}, {"tie_word_embeddings": True}],
)  # fmt: skip
def test_fingerprint_changes_with_the_config(change: dict[str, Any]) -> None:
    assert config_hash(LLAMA | change) != config_hash(LLAMA)


_OLD = LLAMA | {"rope_theta": 500000, "rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 32}}
_NEW = {key: value for key, value in LLAMA.items() if key != "rope_theta"} | {
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0},
    "head_dim": 64, "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip


def test_fingerprint_is_the_same_in_every_form() -> None:
    assert config_hash(_OLD) == config_hash(_NEW)
    assert config_hash(_NEW | {"rope_theta": 5e5}) == config_hash(_NEW)  # both forms, as shplb pad writes
    assert config_hash(LLAMA | {"sliding_window": 4096, "use_sliding_window": False}) == config_hash(LLAMA)
    assert config_hash(LLAMA | {"rope_scaling": {"rope_type": "default"}}) == config_hash(LLAMA)


@pytest.mark.parametrize("config", [LLAMA, _OLD])
def test_fingerprint_survives_transformers(config: dict[str, Any]) -> None:
    """Whatever the installed transformers makes of it, in full and as it would be saved."""
    transformers = pytest.importorskip("transformers")
    rope = {"original_max_position_embeddings": 4096} if "rope_scaling" in config else {}
    given = dict(config) | ({"rope_scaling": config["rope_scaling"] | rope} if rope else {})
    given |= {"vocab_size": 128, "intermediate_size": 96}
    made = transformers.LlamaConfig(**{key: value for key, value in given.items() if key != "torch_dtype"})
    assert config_hash(made.to_dict()) == config_hash(given)
    saved = json.loads(made.to_json_string(use_diff=False))
    assert config_hash(saved) == config_hash(given)


def test_unknown_weights_match_any() -> None:
    assert not Fingerprint("c", "").conflicts(Fingerprint("c", "w"))
    assert not Fingerprint("c", "w").conflicts(Fingerprint("c", ""))
    assert Fingerprint("c", "").conflicts(Fingerprint("d", ""))


def test_weights_that_are_not_safetensors(tmp_path: Path) -> None:
    assert weights_hash(tmp_path) == ""
    for size in (0, 5, 4000):
        (tmp_path / "model.safetensors").write_bytes(b"\xff" * size)
        assert weights_hash(tmp_path) != ""
