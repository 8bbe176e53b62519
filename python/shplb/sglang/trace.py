# SPDX-License-Identifier: Apache-2.0
"""Step traces: the page lists and scores of every sparse step, for debugging and for tests of rank equality."""

from pathlib import Path

import numpy as np
import torch

from shplb.container import load_container, save_container
from shplb.sglang.metadata import QueryBlock

KIND = "StepTrace"
FORMAT_VERSION = 1


class StepTrace:
    """Collects one prefill step of one rank and writes it when its last layer is done."""

    def __init__(self, folder: Path, rank: int, step: int, rids: list[str]) -> None:
        self.path = folder / f"step{step:06d}.rank{rank}.trace.safetensors"
        self.rids = rids
        self._keys: list[tuple[int, int, int, int, int]] = []
        self._pages: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def add(
        self, layer: int, heads: list[int], block: QueryBlock, pages: list[torch.Tensor], scores: torch.Tensor
    ) -> None:
        for local, head in enumerate(heads):
            self._keys.append((layer, head, block.request, block.first_row, block.end_row))
            self._pages.append(pages[local].to("cpu", torch.int32).numpy())
            self._scores.append(scores[local].to("cpu").numpy())

    def write(self) -> None:
        """Arrays: keys int32 [n, 5] = (layer, logical head, request, first_row, end_row), CSR of pages and scores."""
        tensors = {
            "keys": np.array(self._keys, dtype=np.int32).reshape(-1, 5),
            "page_indptr": _indptr(self._pages),
            "pages": _join(self._pages, np.int32),
            "score_indptr": _indptr(self._scores),
            "scores": _join(self._scores, np.float32),
        }
        save_container(self.path, KIND, FORMAT_VERSION, tensors, {"rids": self.rids})


def _indptr(parts: list[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)


def _join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def read_trace(path: Path) -> dict[tuple[str, int, int, int, int], tuple[np.ndarray, np.ndarray]]:
    """(rid, layer, logical head, first_row, end_row) -> (kept pages, scores of all visible pages)."""
    tensors, facts = load_container(path, KIND, FORMAT_VERSION)
    lists = {}
    for index, (layer, head, request, first, end) in enumerate(tensors["keys"].tolist()):
        pages = tensors["pages"][tensors["page_indptr"][index] : tensors["page_indptr"][index + 1]]
        scores = tensors["scores"][tensors["score_indptr"][index] : tensors["score_indptr"][index + 1]]
        lists[facts["rids"][request], layer, head, first, end] = (pages, scores)
    return lists
