# SPDX-License-Identifier: Apache-2.0
"""Padded models compute what the original computes."""

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from shplb.hf.padding import pad_kv_groups  # noqa: E402

_SIZES = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3}


def tiny_model(case: str, folder: Path, **save: object) -> Path:
    family, _, multi_head = case.partition(" ")
    sizes = _SIZES | ({"num_attention_heads": 3} if multi_head else {})
    tiny_models.tiny_model(family, **sizes).save_pretrained(folder, **save)
    return folder


def logits(folder: Path) -> "torch.Tensor":
    return tiny_models.logits(transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.mark.parametrize("num_kv_heads", [4, 8])
@pytest.mark.parametrize("case", [*tiny_models.CASES, "llama multi_head"])
def test_logits_are_equal(tmp_path: Path, case: str, num_kv_heads: int) -> None:
    source = tiny_model(case, tmp_path / "source")
    padded = pad_kv_groups(source, tmp_path / "padded", num_kv_heads)
    torch.testing.assert_close(logits(padded), logits(source), atol=1e-5, rtol=1e-5)
    config = json.loads((padded / "config.json").read_text())
    group_size = 1 if case == "llama multi_head" else 2
    assert config["num_key_value_heads"] == num_kv_heads
    assert config["num_attention_heads"] == num_kv_heads * group_size
    assert config["head_dim"] > 0
    assert config["shplb_inert_kv_heads"] == list(range(3, num_kv_heads))


def test_sharded_weights_stay_sharded(tmp_path: Path) -> None:
    source = tiny_model("qwen2", tmp_path / "source", max_shard_size="60KB")
    padded = pad_kv_groups(source, tmp_path / "padded", 4)
    index = "model.safetensors.index.json"
    before, after = (json.loads((folder / index).read_text()) for folder in (source, padded))
    assert len(set(before["weight_map"].values())) > 1
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] > before["metadata"]["total_size"]
    torch.testing.assert_close(logits(padded), logits(source), atol=1e-5, rtol=1e-5)


def test_other_files_come_along_and_the_result_is_reused(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"old")
    padded = pad_kv_groups(source, tmp_path / "padded", 4)
    names = {path.name for path in padded.iterdir()}
    assert {"tokenizer.json", "generation_config.json", "config.json", "model.safetensors"} <= names
    assert "pytorch_model.bin" not in names
    written = (padded / "model.safetensors").stat().st_mtime_ns
    pad_kv_groups(source, tmp_path / "padded", 4)
    assert (padded / "model.safetensors").stat().st_mtime_ns == written
    (source / "tokenizer.json").write_text('{"changed": 1}')
    pad_kv_groups(source, tmp_path / "padded", 4)
    assert (padded / "tokenizer.json").read_text() == '{"changed": 1}'


def test_padding_twice_lists_all_inert_heads(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "source")
    once = pad_kv_groups(source, tmp_path / "once", 4)
    twice = pad_kv_groups(once, tmp_path / "twice", 8)
    assert json.loads((twice / "config.json").read_text())["shplb_inert_kv_heads"] == [3, 4, 5, 6, 7]
    torch.testing.assert_close(logits(twice), logits(source), atol=1e-5, rtol=1e-5)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_refusals_are_one_sentence(tmp_path: Path) -> None:
    source = tiny_model("llama", tmp_path / "source")

    def refused(match: str, num_kv_heads: int = 4, **changes: object) -> None:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(source, tmp_path / "copy")
        change_config(tmp_path / "copy", **changes)
        with pytest.raises(ValueError, match=match) as caught:
            pad_kv_groups(tmp_path / "copy", tmp_path / "out", num_kv_heads)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused("num_kv_heads is 3, expected more than the 3 KV heads", 3)
    refused("num_kv_heads is 2, expected more than the 3 KV heads", 2)
    refused("10 query heads, but a Llama config must have query heads that divide the hidden size 96", 5)
    refused("has architecture GPT2LMHeadModel, expected one of LlamaForCausalLM", architectures=["GPT2LMHeadModel"])
    refused("has architecture unknown", architectures=None)
    refused("has quantised weights", quantization_config={"quant_method": "fp8"})
    refused("along axis", num_attention_heads=9)


def test_quantised_or_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tiny_model("llama", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.int8)}, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_proj\.weight of type torch\.int8: padding needs unquantised"):
        pad_kv_groups(source, tmp_path / "out", 4)
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors: padding reads safetensors"):
        pad_kv_groups(source, tmp_path / "out", 4)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        pad_kv_groups(tmp_path / "none", tmp_path / "out", 4)
