# SPDX-License-Identifier: Apache-2.0
"""The arrays of a HeadProfile out of the sums that ranks left in the work folder."""

from pathlib import Path

import numpy as np

from shplb.container import FileFormatError
from shplb.errors import CalibrationError
from shplb.model import ModelShape
from shplb.recording import CurveSums, ProfileRequest, exact_name
from shplb.row_sampling import RowSampling, SamplingDifference, compare_curves


def read_sums(folder: Path, request: ProfileRequest, tp_size: int) -> list[CurveSums]:
    """Sums of every document, heads of all ranks; CalibrationError names one that is missing."""
    return [_read(folder, name, tp_size) for name in request.documents]


def mean_arrays(sums: list[CurveSums]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, error, recovery) as a HeadProfile has them."""
    means = [each.means() for each in sums]
    rows = np.array([each.rows[0] for each in sums], dtype=np.int64)
    error = np.array([error for _, error in means], dtype=np.float32)
    return rows, error, np.clip(np.array([recovery for recovery, _ in means], dtype=np.float32), 0.0, 1.0)


def mean_residual(sums: list[CurveSums]) -> np.ndarray:
    """float64 [num_layers], mean over the rows of all documents; 0 where none was measured."""
    total = np.sum([each.residual for each in sums], axis=0)
    return np.asarray(total[:, 0] / np.maximum(total[:, 1], 1.0))


def measured_sampling(
    folder: Path, request: ProfileRequest, tp_size: int, sampled: CurveSums, model: ModelShape, title: str
) -> RowSampling:
    """How rows were sampled and what that changed in the document called ``title``, whose sums are ``sampled``."""
    difference = None
    if request.exact_document:
        exact = _read(folder, exact_name(request.exact_document), tp_size)
        layers = tuple(layer for layer in range(model.num_layers) if request.is_exact(layer))
        real = np.array([head for head in range(model.num_qo_heads) if head not in model.inert_qo_heads])
        where = np.ix_(np.array(layers), real, np.flatnonzero(exact.rows[0]))
        pairs = zip(sampled.means(), exact.means(), strict=True)
        recovery, error = ([each[where].reshape(-1, each.shape[-1]) for each in pair] for pair in pairs)
        difference = SamplingDifference(
            document=title,
            layers=layers,
            **compare_curves((recovery[0], recovery[1]), (error[0], error[1])),  # type: ignore[arg-type]
        )
    return RowSampling(every=request.row_sampling, seed=request.seed, difference=difference)


def _read(folder: Path, name: str, tp_size: int) -> CurveSums:
    try:
        return CurveSums.concatenate([CurveSums.load(folder, name, rank) for rank in range(tp_size)])
    except FileFormatError as reason:
        raise CalibrationError(f"no curves of {name} were recorded ({reason}); profile again.") from None
