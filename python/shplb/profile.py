# SPDX-License-Identifier: Apache-2.0
"""HeadProfile: per query head, what is lost when only a share of the KV pages is kept.

Two curves are measured at the same kept pages (those the served page selection would pick):

* *recovery*: attention mass on the kept pages, mean over query rows, in [0, 1];
* *output error*: ``|| (o_sparse - o_dense) W_o,head ||^2``, mean over query rows: the head's squared error in the
  layer's output. Budgets minimise this one. Recovered mass misleads: diffuse heads recover slowly but hardly change
  the output.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from shplb.container import (
    FileFormatError,
    Migration,
    content_hash,
    load_container,
    save_container,
    take_arrays,
    take_facts,
)
from shplb.model import Fingerprint, ModelShape
from shplb.row_sampling import RowSampling
from shplb.sparsity import MOST_TOKENS, SparsityRule

KIND = "HeadProfile"
FORMAT_VERSION = 2
_CURVES = ("num_documents", "num_layers", "num_qo_heads", "num_lengths", "num_points")
ARRAYS = {
    "lengths": ("int64", ("num_lengths",)),
    "densities": ("float64", ("num_points",)),
    "rows": ("int64", ("num_documents", "num_lengths")),
    "error": ("float32", _CURVES),
    "recovery": ("float32", _CURVES),
    "importance": ("float64", ("num_layers", "num_qo_heads")),
}
OPTIONAL_ARRAYS = {"residual": ("float64", ("num_layers",))}

#: Shares of the visible pages at which curves are measured; finer where curves bend.
DENSITIES = (1 / 64, 1 / 32, 3 / 64, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)


def _add_importance(tensors: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Version 1 may lack what version 2 always has: the importance of heads, and which rows were measured."""
    error = tensors.get("error")
    if error is not None and error.ndim == len(_CURVES):
        tensors.setdefault("importance", np.ones(error.shape[1:3]))
    facts.setdefault("importance_method", "")
    facts.setdefault("row_sampling", None)


#: Version of an older file -> what makes the next version of it; see docs/files.md.
MIGRATIONS: dict[int, Migration] = {1: _add_importance}


class ProfileFacts(msgspec.Struct, frozen=True):
    """What a profile file's metadata holds: everything but arrays.

    importance_method: how importance was measured, "" where it was not. row_sampling: which query rows were measured;
    None in files made before that was stored.
    """

    model: ModelShape
    fingerprint: Fingerprint
    rule: SparsityRule
    documents: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    documents_hash: str
    versions: dict[str, str]
    importance_method: str
    row_sampling: RowSampling | None


class HeadProfile(ProfileFacts, frozen=True, kw_only=True):
    """Curves of one model, per document. Heads are in the model's own (logical) order.

    Attributes:
        lengths: int64 [num_lengths], ascending tokens; length n is measured on query rows in (n/2, n].
        densities: float64 [num_points], ascending, last 1.
        rows: int64 [num_documents, num_lengths], query rows measured.
        error: float32 [num_documents, num_layers, num_qo_heads, num_lengths, num_points], output error.
        recovery: float32, same shape, recovered attention mass.
        importance: float64 [num_layers, num_qo_heads], what a unit of a head's output error costs the model's loss,
            relative to the other heads (mean 1 over heads that are not inert; all ones where it was not measured).
            Budgets of least error multiply it into the error curves.
        residual: float64 [num_layers], mean over query rows of the squared norm of what the layer adds its output to; 0
            where it was not measured.
    """

    lengths: np.ndarray
    densities: np.ndarray
    rows: np.ndarray
    error: np.ndarray
    recovery: np.ndarray
    importance: np.ndarray = msgspec.field(default_factory=lambda: np.empty((0, 0)))
    importance_method: str = ""
    row_sampling: RowSampling | None = None
    residual: np.ndarray = msgspec.field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        if not self.importance.size:
            equal = np.ones((self.model.num_layers, self.model.num_qo_heads))
            msgspec.structs.force_setattr(self, "importance", equal)
        if not self.residual.size:
            msgspec.structs.force_setattr(self, "residual", np.zeros(self.model.num_layers))

    def mean_curves(self, name: str) -> np.ndarray:
        """Row-weighted mean over documents of ``error`` or ``recovery``: float64 [layers, heads, lengths, points]."""
        weights = self.rows.astype(np.float64)
        weights = weights / np.maximum(weights.sum(axis=0), 1.0)
        return np.asarray(np.einsum("dn,dlhnp->lhnp", weights, getattr(self, name).astype(np.float64)))

    @property
    def curves_hash(self) -> str:
        """sha256 (hex) of all that budgets are made from; equal weights don't count, as in files from before them."""
        weighed = bool(np.any(self.importance != 1.0))
        names = ("error", "recovery", "importance") if weighed else ("error", "recovery")
        return content_hash({name: getattr(self, name) for name in names}, {})

    @property
    def inert(self) -> np.ndarray:
        """bool [num_layers, num_qo_heads]: query heads of padded KV groups."""
        mask = np.zeros((self.model.num_layers, self.model.num_qo_heads), dtype=bool)
        for group in self.model.inert_kv_heads:
            mask[:, group * self.model.group_size : (group + 1) * self.model.group_size] = True
        return mask

    def save(self, path: Path) -> str:
        """Write atomically; returns the content hash."""
        facts = msgspec.to_builtins(self, builtin_types=(np.ndarray,))
        tensors = {name: facts.pop(name) for name in (*ARRAYS, *OPTIONAL_ARRAYS)}
        return save_container(path, KIND, FORMAT_VERSION, tensors, facts)

    @classmethod
    def load(cls, path: Path) -> "HeadProfile":
        """Read and validate; FileFormatError in one sentence when the file can't be used."""
        tensors, fields = load_container(path, KIND, FORMAT_VERSION, MIGRATIONS)
        facts = take_facts(path, KIND, fields, ProfileFacts)
        extents = {**facts.model.head_counts, "num_documents": len(facts.documents)}
        arrays = take_arrays(path, tensors, ARRAYS, extents, OPTIONAL_ARRAYS)
        profile = cls(**{name: getattr(facts, name) for name in facts.__struct_fields__}, **arrays)
        profile.validate(path)
        return profile

    def validate(self, path: Path) -> None:
        """Check value ranges; FileFormatError naming the first array that is out of range."""
        ascending = (
            len(self.lengths) > 0
            and 0 < self.lengths[0] <= self.lengths[-1] <= MOST_TOKENS
            and bool(np.all(np.diff(self.lengths) > 0))
        )
        rising = len(self.densities) > 0 and self.densities[0] > 0 and bool(np.all(np.diff(self.densities) > 0))
        checks = {
            "lengths": ascending,
            "densities": rising and self.densities[-1] == 1.0,
            "rows": bool(np.all(self.rows >= 0)) and bool(np.all(self.rows.sum(axis=0) > 0)),
            "error": bool(np.all(np.isfinite(self.error)) and np.all(self.error >= 0))
            and bool(np.all(self.error[..., -1] <= 0.01 * self.error.max(initial=0.0))),
            # With all pages kept, a head recovers everything and errs by rounding only.
            "recovery": bool(np.all((self.recovery >= 0) & (self.recovery <= 1 + 1e-4)))
            and bool(np.all(np.moveaxis(self.recovery[..., -1], 3, 1)[self.rows > 0] > 0.99)),
            "importance": bool(np.all(np.isfinite(self.importance) & (self.importance >= 0)))
            and bool(np.all(self.inert) or abs(self.importance[~self.inert].mean() - 1.0) < 1e-6),
            "residual": bool(np.all(np.isfinite(self.residual) & (self.residual >= 0))),
        }
        for name, good in checks.items():
            if not good:
                raise FileFormatError(f"{path}: array '{name}' holds values out of range; profile the model again.")
