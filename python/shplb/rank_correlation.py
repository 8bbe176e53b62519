# SPDX-License-Identifier: Apache-2.0
"""Pearson and Spearman correlation between all rows of a matrix; scipy is no run-time dependency."""

import numpy as np


def pearson(values: np.ndarray) -> np.ndarray:
    """float64 [rows, rows] for values [rows, columns], columns > 0; NaN where one of the two rows is constant."""
    varies = np.ptp(values, axis=1, keepdims=True) > 0
    centred = values - values.mean(axis=1, keepdims=True)
    unit = centred / np.where(varies, np.linalg.norm(centred, axis=1, keepdims=True), 1.0)
    return np.where(varies & varies.T, np.clip(unit @ unit.T, -1.0, 1.0), np.nan)


def spearman(values: np.ndarray) -> np.ndarray:
    """Pearson correlation of the rows' ranks, ties by their average rank (Spearman 1904); else as ``pearson``."""
    return pearson(average_ranks(values))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """float64 [rows, columns], ranks from 1 within each row; equal values share the mean of their ranks."""
    ranks = np.empty(values.shape)
    for row, out in zip(values, ranks, strict=True):
        _, place, count = np.unique(row, return_inverse=True, return_counts=True)
        out[:] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
