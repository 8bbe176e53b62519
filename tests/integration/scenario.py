# SPDX-License-Identifier: Apache-2.0
"""Prompts, plans and servers shared by the integration tests."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from shplb.allocation import placed_order
from shplb.model import ModelShape, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.sglang.launch import Server
from shplb.sparsity import SparsityRule, query_block_size
from shplb.texts import held_out_documents

#: The folder of tests/conftest.py.
CACHE = Path(os.environ.get("SHPLB_TEST_CACHE") or Path(__file__).parents[2] / ".cache" / "tests")

CHUNK_TOKENS = 1024
NEW_TOKENS = 4
# With a page size of 64, sharing 280 tokens gives a cache hit of 256.
SHARED_TOKENS = 280


def prompts(model: Path, lengths: list[int]) -> list[list[int]]:
    """One prompt of real held-out text per length; every third one starts like the one before it (a prefix hit)."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    documents = held_out_documents(max(lengths), tokenizer, domains=["prose", "code", "manual", "dialogue"])
    result: list[list[int]] = []
    for index, length in enumerate(lengths):
        tokens = documents[index % len(documents)].token_ids
        start = (index // len(documents)) * 37 % max(len(tokens) - length, 1)
        prompt = tokens[start : start + length]
        if index % 3 == 2 and min(length, len(result[-1])) > SHARED_TOKENS:
            prompt = result[-1][:SHARED_TOKENS] + prompt[SHARED_TOKENS:]
        result.append(prompt)
    return result


def random_plan(model: Path, tp_size: int, path: Path, *, dense: bool, seed: int = 0, replicas: int = 0) -> ServingPlan:
    """A plan with a different permutation in every layer, or replicas; budgets 1.0, or log-uniform in [0.05, 0.9].

    Budgets depend on seed, layer and head alone, so plans for other TP sizes or for the padded model have the same.
    """
    shape = ModelShape.from_config(read_config(model))
    real_heads = shape.num_qo_heads - len(shape.inert_kv_heads) * shape.group_size
    rng = np.random.default_rng(seed)
    budgets = np.full((shape.num_layers, shape.num_qo_heads, 2), 1.0 if dense else 0.05)
    if not dense:
        drawn = np.exp(rng.uniform(np.log(0.05), np.log(0.9), size=(shape.num_layers, real_heads, 2)))
        budgets[:, :real_heads] = drawn
    order = np.stack(
        [np.random.default_rng([seed, layer]).permutation(shape.num_kv_heads) for layer in range(shape.num_layers)]
    )
    if replicas:
        drawn_loads = rng.integers(1, 100, (shape.num_layers, shape.num_kv_heads))
        order = placed_order(drawn_loads, tp_size, replicas)
    plan = ServingPlan(
        model=shape,
        fingerprint=fingerprint(model),
        tp_size=tp_size,
        rule=SparsityRule(query_block=query_block_size(shape.head_dim), dense_below_tokens=0 if dense else 256),
        objective="min_error",
        scope="model",
        density=1.0 if dense else 0.3,
        profile_hash="none: random test plan",
        versions={},
        lengths=np.array([512, 4096], dtype=np.int64),
        budgets=budgets,
        physical_to_logical=order.astype(np.int32),
        loads=np.ones((shape.num_layers, shape.num_kv_heads), dtype=np.int64),
        replicas=replicas,
    )
    plan.save(path)
    return plan


def server(model: Path, log: Path, tp_size: int, *options: str, env: Mapping[str, str] | None = None) -> Server:
    """A CPU server with chunked prefill and the radix cache on."""
    base = ["--dtype", "float32", "--max-total-tokens", "30000", "--chunked-prefill-size", str(CHUNK_TOKENS)]
    return Server(model, log, tp_size=tp_size, device="cpu", options=[*base, "--skip-server-warmup", *options], env=env)


def greedy(running: Server, batch: list[list[int]], rids: list[str] | None = None) -> list[dict[str, object]]:
    """Greedy continuations of a batch sent in one request, with the log-probability of every new token."""
    body = {
        "input_ids": batch,
        "sampling_params": {"temperature": 0.0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    if rids is not None:
        body["rid"] = rids
    return list(running.post("/generate", body))
