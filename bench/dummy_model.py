# SPDX-License-Identifier: Apache-2.0
"""Models of known shapes without weights, and plans with random budgets: speed depends on neither's meaning."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shplb.allocation import placed_order
from shplb.model import ModelShape, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.planning import check_replicas, check_tp_size
from shplb.sparsity import SparsityRule, query_block_size

_LLAMA31_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_LLAMA31_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": _LLAMA31_ROPE,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN25_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
    "max_position_embeddings": 131072, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "use_sliding_window": False, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
_QWEN25_3B: dict[str, Any] = _QWEN25_7B | {
    "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
    "intermediate_size": 11008, "vocab_size": 151936,
}  # fmt: skip

#: config.json by name. "qwen2.5-3b" has two KV groups of eight heads; "wide-kv" fills a GPU with few tokens, half a MiB
#: of KV cache each; "tiny" is for a trial without a GPU.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _LLAMA31_8B,
    "llama-3.1-8b-8layers": _LLAMA31_8B | {"num_hidden_layers": 8},
    "qwen2.5-7b": _QWEN25_7B,
    "qwen2.5-3b": _QWEN25_3B,
    "wide-kv": _LLAMA31_8B | {
        "num_key_value_heads": 32, "hidden_size": 1024, "intermediate_size": 2048, "vocab_size": 1024,
        "max_position_embeddings": 524288,
    },
    "tiny": _LLAMA31_8B | {
        "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "intermediate_size": 512, "vocab_size": 1024,
    },
}  # fmt: skip

#: What a server needs beside the folder.
DUMMY_OPTIONS = ["--load-format", "dummy"]

_LEAST_BUDGET = 0.002
_LENGTHS = (8192, 131072)
_LOAD_UNITS = 1e6  # of one head's whole attention; loads are integers and only their ratios count


def write_dummy_model(folder: Path, shape: str) -> Path:
    """config.json of a shape and a tokenizer in which every token is a word; SGLang draws the weights itself.

    SGLang's benchmark takes the first chunk *with text* as the first token, so a server started with
    --skip-tokenizer-init, which sends none, would have a TTFT of 0 there; and real tokenizers hold tokens whose text is
    empty. Here every generated token, whichever it is, has a text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    words = {f"t{index}": index for index in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def lognormal_budgets(
    shape: tuple[int, ...], density: float, sigma: float, seed: int, *, group_size: int = 1, group_sigma: float = 0.0
) -> np.ndarray:
    """float64 in [0.002, 1] of ``shape`` with mean ``density``: log-normal, scaled, then clipped.

    Every run of ``group_size`` heads shares a further log-normal factor of ``group_sigma``.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.lognormal(0.0, sigma, shape)
    drawn *= np.repeat(generator.lognormal(0.0, group_sigma, (*shape[:-1], shape[-1] // group_size)), group_size, -1)
    low, high = 0.0, 1.0 / float(drawn.min())
    # Clipping moves the mean, so the scale that meets it is searched for.
    for _ in range(60):
        scale = (low + high) / 2
        mean = float(np.clip(drawn * scale, _LEAST_BUDGET, 1.0).mean())
        low, high = (scale, high) if mean < density else (low, scale)
    return np.clip(drawn * scale, _LEAST_BUDGET, 1.0)


def spread_plan(
    model_dir: Path, *, tp_size: int, density: float, sigma: float, seed: int, group_sigma: float = 0.0
) -> ServingPlan:
    """A plan for the model in ``model_dir`` whose heads, and KV groups, differ by log-normal factors, at all lengths.

    Raises:
        PlanningError: ``tp_size`` does not divide the KV heads.
    """
    shape = ModelShape.from_config(read_config(model_dir))
    check_tp_size(shape, tp_size)
    heads = shape.num_layers, shape.num_qo_heads
    budgets = lognormal_budgets(heads, density, sigma, seed, group_size=shape.group_size, group_sigma=group_sigma)
    loads = budgets.reshape(shape.num_layers, shape.num_kv_heads, shape.group_size).sum(axis=2)
    loads = np.rint(loads * _LOAD_UNITS).astype(np.int64)
    return ServingPlan(
        model=shape,
        fingerprint=fingerprint(model_dir),
        tp_size=tp_size,
        rule=SparsityRule(query_block=query_block_size(shape.head_dim)),
        objective="min_error",
        scope="model",
        density=density,
        profile_hash=f"none: log-normal budgets, sigma {sigma:g}, of groups {group_sigma:g}, seed {seed}",
        versions={"shplb": version("shplb")},
        lengths=np.array(_LENGTHS, dtype=np.int64),
        budgets=np.repeat(budgets[:, :, None], len(_LENGTHS), axis=2),
        physical_to_logical=placed_order(loads, tp_size),
        loads=loads,
    )


def unplaced(plan: ServingPlan) -> ServingPlan:
    """The same budgets with the heads where stock SGLang has them."""
    return msgspec.structs.replace(plan, physical_to_logical=plan.own_order)


def without_tail(plan: ServingPlan) -> ServingPlan:
    """The same budgets to the end of every prompt."""
    return msgspec.structs.replace(plan, rule=msgspec.structs.replace(plan.rule, dense_tail_tokens=0))


def replicated(plan: ServingPlan, replicas: int) -> ServingPlan:
    """The same budgets with second copies of KV groups in ``replicas`` more slots per rank.

    Raises:
        PlanningError: so many copies do not fit.
    """
    check_replicas(plan.model, plan.tp_size, replicas)
    order = placed_order(plan.loads, plan.tp_size, replicas)
    return msgspec.structs.replace(plan, physical_to_logical=order, replicas=replicas)
