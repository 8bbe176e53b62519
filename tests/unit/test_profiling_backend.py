# SPDX-License-Identifier: Apache-2.0
"""The recording backend between SGLang's steps: whose tokens it reads, when it saves, whom it leaves alone."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from shplb.recording import CurveSums, ProfileRequest
from shplb.sglang.profiling import CurveRecorder, ProfilingMixin
from shplb.sparsity import SparsityRule

TOKENS, HEADS, KV_HEADS, DIM, LAYERS, CHUNK = 500, 4, 2, 16, 2, 256
REQUEST = ProfileRequest(documents=("a", "b"), lengths=(256, TOKENS), rule=SparsityRule(query_block=128))


class DenseBackend:
    """Stands in for SGLang's."""

    metadata_of: Any = None

    def init_forward_metadata(self, forward_batch: Any) -> None:
        self.metadata_of = forward_batch

    def forward_extend(self, q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return q + 1


class RecordingBackend(ProfilingMixin, DenseBackend):
    def __init__(self, folder: Path, keys: torch.Tensor, values: torch.Tensor) -> None:
        """keys, values: [layers, pool_tokens, kv_heads, dim]; three requests own a third of the pool each."""
        self.shplb_recorder = CurveRecorder(REQUEST, folder, 0, torch.eye(DIM).repeat(LAYERS, HEADS, 1, 1))
        self.shplb_blocks, self.shplb_slots = [], []
        self.req_to_token_pool = SimpleNamespace(req_to_token=torch.arange(3 * TOKENS, dtype=torch.int32).view(3, -1))
        self.token_to_kv_pool = SimpleNamespace(
            get_key_buffer=lambda layer: keys[layer], get_value_buffer=lambda layer: values[layer]
        )

    def prefill(self, rid: str, request: int, queries: torch.Tensor) -> None:
        """One request in chunks; queries: [layers, tokens, heads, dim]."""
        for first in range(0, TOKENS, CHUNK):
            new = min(CHUNK, TOKENS - first)
            batch = SimpleNamespace(
                forward_mode=SimpleNamespace(is_extend_without_speculative=lambda: True),
                rids=[rid],
                extend_prefix_lens_cpu=[first],
                extend_seq_lens_cpu=[new],
                req_pool_indices=torch.tensor([request]),
            )
            self.init_forward_metadata(batch)
            assert self.metadata_of is batch
            for index in range(LAYERS):
                layer = SimpleNamespace(layer_id=index, tp_q_head_num=HEADS, qk_head_dim=DIM, scaling=DIM**-0.5)
                q = queries[index, first : first + new].flatten(1)
                out = self.forward_extend(q, q, q, layer, batch)
                assert torch.equal(out, q + 1)


@pytest.fixture
def tensors() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    pools = torch.randn(2, LAYERS, 3 * TOKENS, KV_HEADS, DIM, generator=generator)
    return (*pools, 2 * torch.randn(LAYERS, TOKENS, HEADS, DIM, generator=generator))


def test_documents_of_equal_blocks_are_told_apart(tmp_path: Path, tensors: tuple[torch.Tensor, ...]) -> None:
    *pools, queries = tensors
    together = RecordingBackend(tmp_path / "together", *pools)
    together.prefill("a", 0, queries)
    together.prefill("someone else's", 1, queries)
    together.prefill("b", 2, queries)
    alone = RecordingBackend(tmp_path / "alone", *pools)
    alone.prefill("b", 2, queries)
    found, expected = (CurveSums.load(tmp_path / name, "b", 0) for name in ("together", "alone"))
    np.testing.assert_array_equal(found.recovery, expected.recovery)
    np.testing.assert_array_equal(found.error, expected.error)
    other = CurveSums.load(tmp_path / "together", "a", 0)
    assert not np.allclose(other.recovery, expected.recovery)
    assert sorted(path.name.split(".")[0] for path in (tmp_path / "together").iterdir()) == ["a", "b"]


def test_a_document_is_saved_at_its_end(tmp_path: Path, tensors: tuple[torch.Tensor, ...]) -> None:
    *pools, queries = tensors
    backend = RecordingBackend(tmp_path, *pools)
    saved = CurveSums.path(tmp_path, "a", 0)
    seen: list[bool] = []
    record = backend.shplb_recorder.record

    def watched(*arguments: Any) -> None:
        record(*arguments)
        seen.append(saved.exists())

    backend.shplb_recorder.record = watched  # type: ignore[method-assign]
    backend.prefill("a", 1, queries)
    assert seen == [False, False, False, True]
    # Rows of (0, 256] and (256, 500], one in eight.
    assert CurveSums.load(tmp_path, "a", 0).rows.tolist() == [[16, 31]] * LAYERS
