# SPDX-License-Identifier: Apache-2.0
"""What the step planner predicts for a trace of steps: makespans and bubbles, without a GPU."""

import numpy as np
import numpy.typing as npt

from shplb import _core
from shplb._core import Simulation
from shplb.planner import Mode, StepPlanner

__all__ = ["Simulation", "simulate"]


def simulate(
    planner: StepPlanner,
    step_indptr: npt.NDArray[np.int64],
    prefix_lens: npt.NDArray[np.int64],
    new_lens: npt.NDArray[np.int64],
    mode: Mode = "auto",
) -> Simulation:
    """Predicts every step of a trace; the same numbers ``planner.predict`` gives step by step.

    Args:
        step_indptr: int64 ``[num_steps + 1]``: step s runs the requests [step_indptr[s], step_indptr[s + 1]).
        prefix_lens, new_lens: int64 ``[num_requests]``, tokens.
        mode: as in ``StepPlanner.plan``.

    Returns:
        ``.step_ns``, ``.dense_ns``, ``.makespan_ns``, ``.num_sparse`` int64 ``[num_steps]``, ``.rank_ns`` int64
        ``[num_steps, num_ranks]``, ``.bubble`` float64 ``[num_steps]``. Ranks wait for each other after every layer,
        so ``makespan_ns`` sums the slowest rank of each layer, and ``bubble`` is 1 - mean(rank_ns) / makespan_ns.

    Raises:
        InvalidArgument: names the argument, got and expected.
    """
    return _core.simulate(planner._core, step_indptr, prefix_lens, new_lens, mode)
