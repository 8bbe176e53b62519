# SPDX-License-Identifier: Apache-2.0
"""How many pages each query head may keep, under a fixed total."""

from typing import Literal

import numpy as np
import numpy.typing as npt

from shplb import _core
from shplb._core import Budgets

__all__ = ["Budgets", "Objective", "Scope", "allocate_budgets"]

Objective = Literal["min_error", "max_min", "max_mean", "uniform"]
Scope = Literal["model", "layer"]


def allocate_budgets(
    curves: npt.NDArray[np.float64],
    densities: npt.NDArray[np.float64],
    total_density: float,
    *,
    min_density: float = 0.0,
    scope: Scope = "model",
    objective: Objective = "max_min",
    zero: npt.NDArray[np.float64] | None = None,
    inert: npt.NDArray[np.bool_] | None = None,
) -> Budgets:
    """Gives every query head the density that is best for the whole, at a fixed mean density.

    Call it once per profiled context length. Arrays must be C-contiguous numpy arrays of exactly
    the dtype named here; nothing is converted.

    Args:
        curves: float64 ``[num_layers, num_heads, num_points]``. For ``min_error`` the output error of
            each head (finite, >= 0, any unit common to all heads); for the other objectives its
            recovery in [0, 1]. A value worse than one at a lower density counts as equal to it.
        densities: float64 ``[num_points]``, strictly ascending in (0, 1] by 1e-9 or more, last 1.
        total_density: mean density over heads that are not inert, in (0, 1]. All of it is given
            out, also where nothing is gained any more.
        min_density: floor of every head, in [0, total_density].
        scope: ``model`` shares one total over all layers, ``layer`` gives each layer the same mean.
        objective: ``min_error`` minimises the sum of errors and ``max_mean`` maximises the mean
            recovery, both as the exact optimum over the convex hulls of the curves on
            [min_density, 1], by equal marginal gain (Everett 1963, Fox 1966). ``max_min`` raises the worst head
            as far as possible, then the next worst (leximin, S-HPLB arXiv 2603.10353).
            ``uniform`` gives every head ``total_density``.
        zero: ``min_error`` only: float64 ``[num_layers, num_heads]``, the error at density 0, which
            is the norm of the head's dense contribution. Without it the first segment of each
            curve goes on in a straight line. It matters only if ``min_density < densities[0]``.
            Recovery at density 0 is always 0.
        inert: bool ``[num_layers, num_heads]``, true for padded heads: they get ``min_density`` and
            are left out of totals, means and the worst head.

    Returns:
        ``.density`` float64 ``[num_layers, num_heads]`` (read-only), ``.mean_density``,
        ``.worst_recovery`` (None for ``min_error``), ``.total_error`` (on the hulls, None for the
        other objectives). Heads with equal curves get equal densities up to 2^-40.

    Raises:
        InvalidArgument: names the argument, what was given and what was expected.
    """
    return _core.allocate_budgets(
        curves,
        densities,
        total_density,
        min_density=min_density,
        scope=scope,
        objective=objective,
        zero=zero,
        inert=inert,
    )
