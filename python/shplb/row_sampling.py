# SPDX-License-Identifier: Apache-2.0
"""Which query rows are measured for a profile, and how far that is from measuring all of them."""

import random

import msgspec
import numpy as np

#: At least one row in so many is measured.
MOST_SPARSE = 8


class SamplingDifference(msgspec.Struct, frozen=True):
    """Curves from sampled rows against curves from all rows of the same document, point by point.

    The last point, where every page is kept, and inert heads are left out.

    document: the one that was measured twice; layers: the layers it was measured twice in; curves: how many (one per
    layer, query head and length). recovery_mean, recovery_worst: absolute difference. error_mean, error_worst:
    difference in output error as a share of the curve's largest exact value.
    """

    document: str
    layers: tuple[int, ...]
    curves: int
    recovery_mean: float
    recovery_worst: float
    error_mean: float
    error_worst: float


class RowSampling(msgspec.Struct, frozen=True):
    """One query row in ``every`` is measured, chosen by ``seed``; ``difference`` to all rows, None where none is."""

    every: int
    seed: int
    difference: SamplingDifference | None = None


def sampled_rows(first_row: int, end_row: int, *, every: int, seed: int, document: str, layer: int) -> np.ndarray:
    """One random row of every run of ``every`` rows of a query block: int64, ascending absolute positions.

    A stratified sample: no stretch of a block is missed, and no period of the text is hit always or never. It depends
    on the arguments alone, so that all ranks, at any TP size, measure the same rows.
    """
    # random.Random hashes a string with sha512, so the choice is the same in every process.
    rng = random.Random(f"{seed} {document} {layer} {first_row}")
    starts = range(first_row, end_row, every)
    return np.array([start + rng.randrange(min(every, end_row - start)) for start in starts], dtype=np.int64)


def compare_curves(
    recovery: tuple[np.ndarray, np.ndarray], error: tuple[np.ndarray, np.ndarray]
) -> dict[str, float | int]:
    """Fields ``curves`` to ``error_worst`` of a SamplingDifference.

    recovery, error: (sampled, exact) curves, float64 [num_curves, num_points], the last point that of density 1.
    """
    by_recovery = np.abs(recovery[0] - recovery[1])[:, :-1]
    largest = error[1].max(axis=1, keepdims=True, initial=0.0)
    by_error = (np.abs(error[0] - error[1]) / np.where(largest > 0, largest, 1.0))[:, :-1]
    return {
        "curves": len(recovery[0]),
        "recovery_mean": float(by_recovery.mean()),
        "recovery_worst": float(by_recovery.max()),
        "error_mean": float(by_error.mean()),
        "error_worst": float(by_error.max()),
    }
