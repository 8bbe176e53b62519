# SPDX-License-Identifier: Apache-2.0
"""Profiles and plans made of random numbers, for tests that need no model."""

from pathlib import Path
from typing import Any

import numpy as np

from shplb.model import Fingerprint, ModelShape
from shplb.plan import ServingPlan
from shplb.profile import DENSITIES, HeadProfile
from shplb.sparsity import SparsityRule, query_block_size

LENGTHS = (1024, 4096, 16384)


def make_shape(layers: int = 3, kv_heads: int = 4, group: int = 2, inert: tuple[int, ...] = ()) -> ModelShape:
    return ModelShape("LlamaForCausalLM", layers, kv_heads * group, kv_heads, 64, 64 * kv_heads * group, inert)


def make_profile(shape: ModelShape | None = None, documents: int = 2, seed: int = 0) -> HeadProfile:
    """Convex decreasing error and concave rising recovery; heads differ by orders of magnitude."""
    shape = shape or make_shape()
    rng = np.random.default_rng(seed)
    heads = (documents, shape.num_layers, shape.num_qo_heads, len(LENGTHS), 1)
    densities = np.array(DENSITIES)
    bend = rng.uniform(2, 40, heads)
    error = 10 ** rng.uniform(-3, 1, heads) * (np.exp(-bend * densities) - np.exp(-bend))
    recovery = (1 - np.exp(-bend * densities)) / (1 - np.exp(-bend))
    return HeadProfile(
        model=shape,
        fingerprint=Fingerprint("config", "weights"),
        rule=SparsityRule(query_block=query_block_size(shape.head_dim)),
        documents=tuple(f"text {index}" for index in range(documents)),
        documents_hash="hash",
        versions={"shplb": "0"},
        lengths=np.array(LENGTHS, dtype=np.int64),
        densities=densities,
        rows=rng.integers(1, 100, (documents, len(LENGTHS))),
        error=error.astype(np.float32),
        recovery=recovery.astype(np.float32),
    )


def make_serving_plan(shape: ModelShape | None = None, seed: int = 0, **changes: object) -> ServingPlan:
    """Random budgets and another random order of the KV groups in every layer."""
    shape = shape or make_shape()
    rng = np.random.default_rng(seed)
    order = [rng.permutation(shape.num_kv_heads) for _ in range(shape.num_layers)]
    fields = {
        "model": shape,
        "fingerprint": Fingerprint("config", "weights"),
        "tp_size": 1,
        "rule": SparsityRule(query_block=query_block_size(shape.head_dim)),
        "objective": "min_error",
        "scope": "model",
        "density": 0.25,
        "profile_hash": "hash",
        "versions": {"shplb": "0"},
        "lengths": np.array(LENGTHS, dtype=np.int64),
        "budgets": rng.uniform(0.01, 1, (shape.num_layers, shape.num_qo_heads, len(LENGTHS))),
        "physical_to_logical": np.array(order, dtype=np.int32),
        "loads": rng.integers(0, 10**6, (shape.num_layers, shape.num_kv_heads)),
        "recovery": rng.uniform(0.1, 0.9, (shape.num_layers, shape.num_qo_heads, len(LENGTHS))),
    }
    return ServingPlan(**(fields | changes))  # type: ignore[arg-type]


def save_plan(path: Path, **changes: object) -> Path:
    make_serving_plan(**changes).save(path)  # type: ignore[arg-type]
    return path


def assert_same(left: Any, right: Any) -> None:
    """Two structs of one type are equal, field by field, arrays with their dtypes."""
    for name in left.__struct_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


def is_one_sentence(message: object) -> bool:
    """One line that ends like a sentence and has no second one (file names and numbers hold dots without a space)."""
    text = str(message)
    return "\n" not in text and text.endswith(".") and ". " not in text and "Traceback" not in text
