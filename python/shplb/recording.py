# SPDX-License-Identifier: Apache-2.0
"""The folder through which a profiling run and SGLang's ranks talk: a request in, curve sums per document out."""

from pathlib import Path

import msgspec
import numpy as np

from shplb.container import load_container, save_container, write_atomically
from shplb.sparsity import SparsityRule

KIND = "CurveSums"
FORMAT_VERSION = 1
#: Of the way in which curves are measured: documents of another are not mixed with new ones.
MEASUREMENT_VERSION = 2
_REQUEST = "request.json"
_JOB = "job.json"
_CURVES = ("recovery", "error")
# Exact curves cost as much as all sampled ones of eight documents; a quarter of them says how far apart the two are.
_EXACT_LAYERS = 4


class ProfileRequest(msgspec.Struct, frozen=True):
    """What to measure. Requests of the server whose id is in ``documents`` are profiled, all others ignored.

    Documents have as many tokens as the longest of ``lengths``.
    """

    documents: tuple[str, ...]
    lengths: tuple[int, ...]
    rule: SparsityRule
    #: One query row in so many is measured, chosen by ``seed`` (see ``row_sampling.sampled_rows``).
    row_sampling: int = 8
    seed: int = 0
    #: This one is also measured on all rows, in every fourth layer; "" for none.
    exact_document: str = ""

    def owns(self, rid: str) -> bool:
        return rid in self.documents

    def bucket(self, end_row: int) -> int | None:
        """Index of the length n with end_row in (n/2, n], None outside all of them."""
        for index, length in enumerate(self.lengths):
            if length // 2 < end_row <= length:
                return index
        return None

    def is_exact(self, layer: int) -> bool:
        """Whether ``exact_document`` is measured on all rows in this layer."""
        return layer % _EXACT_LAYERS == 0

    def save(self, folder: Path) -> None:
        write_atomically(folder / _REQUEST, msgspec.json.encode(self))

    @staticmethod
    def is_in(folder: Path) -> bool:
        return (folder / _REQUEST).is_file()

    @classmethod
    def load(cls, folder: Path) -> "ProfileRequest":
        return msgspec.json.decode((folder / _REQUEST).read_bytes(), type=cls)


class ProfileJob(msgspec.Struct, frozen=True):
    """What the worker process is to run: token ids of the documents that are still missing."""

    model_path: str
    tp_size: int
    device: str
    dtype: str
    attention_backend: str
    documents: dict[str, list[int]]

    def save(self, folder: Path) -> None:
        write_atomically(folder / _JOB, msgspec.json.encode(self))

    @classmethod
    def load(cls, folder: Path) -> "ProfileJob":
        return msgspec.json.decode((folder / _JOB).read_bytes(), type=cls)

    @staticmethod
    def mark_done(folder: Path, document: str) -> None:
        (folder / f"{document}.done").touch()

    @staticmethod
    def is_done(folder: Path, document: str) -> bool:
        return (folder / f"{document}.done").exists()


def exact_name(document: str) -> str:
    """Under which name the sums over all rows of ``document`` are kept."""
    return f"{document}.exact"


class CurveSums:
    """Sums over query rows for one document on one rank.

    recovery, error: float64 [num_layers, local_qo_heads, num_lengths, num_points]; rows: int64
    [num_layers, num_lengths]; residual: float64 [num_layers, 2], squared norms of what each layer adds its output to,
    over so many rows.
    """

    def __init__(
        self, recovery: np.ndarray, error: np.ndarray, rows: np.ndarray, residual: np.ndarray | None = None
    ) -> None:
        self.recovery, self.error, self.rows = recovery, error, rows
        self.residual = np.zeros((len(rows), 2)) if residual is None else residual

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """(recovery, error) per query row, same shapes; 0 where no row was measured."""
        scale = 1.0 / np.maximum(self.rows, 1)[:, None, :, None]
        return self.recovery * scale, self.error * scale

    @classmethod
    def concatenate(cls, parts: "list[CurveSums]") -> "CurveSums":
        """The heads of all ranks in the model's order."""
        recovery, error = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in _CURVES)
        return cls(recovery, error, parts[0].rows, parts[0].residual)

    @staticmethod
    def path(folder: Path, document: str, rank: int) -> Path:
        return folder / f"{document}.rank{rank}.sums.safetensors"

    def save(self, folder: Path, document: str, rank: int) -> None:
        tensors = {"recovery": self.recovery, "error": self.error, "rows": self.rows, "residual": self.residual}
        save_container(self.path(folder, document, rank), KIND, FORMAT_VERSION, tensors, {})

    @classmethod
    def load(cls, folder: Path, document: str, rank: int) -> "CurveSums":
        tensors, _ = load_container(cls.path(folder, document, rank), KIND, FORMAT_VERSION)
        return cls(tensors["recovery"], tensors["error"], tensors["rows"], tensors.get("residual"))
