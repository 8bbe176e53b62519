# SPDX-License-Identifier: Apache-2.0
"""How fast each rank's GPU is against the others, by the cost model, from sampled attention times.

Ranks that are told the same samples at the same steps come to the same speeds without a message: times are rounded to
whole nanoseconds first, and everything after that is exact.
"""

import numpy as np
import numpy.typing as npt

from shplb.planner import LEAST_SPEED, MOST_SPEED, NOMINAL_SPEED

#: Of what a sample says, this part is taken over, so that one odd sample does little: 1 / _SLOWNESS.
_SLOWNESS = 8
#: No sample changes a speed by more than 1 / _STEP.
_STEP = 50
#: ns that a layer takes every rank at least where its time says how fast ranks are. Launches cost some 10 us that the
#: model does not know: of short layers, who has more work would seem faster, get more still, and so on to the bound.
LEAST_LAYER_NS = 200_000
#: The state is finer than what planners take, or small differences would be rounded away every time.
_FINER = 1024


def is_sound(measured_ms: npt.NDArray[np.float64], predicted_ns: npt.NDArray[np.int64]) -> bool:
    """Whether a sample can be used: times are finite and not negative, and every rank computed something.

    float64 and int64 ``[num_layers, num_ranks]``.
    """
    if measured_ms.shape != predicted_ns.shape or not np.all(np.isfinite(measured_ms)) or np.any(measured_ms < 0):
        return False
    return bool(np.all(measured_ms.sum(axis=0) > 0) and np.all(predicted_ns.sum(axis=0) > 0))


class RankSpeeds:
    """Speeds start as predicted, follow samples by an eighth each, at most 2 % at a time, and stay within 25 %.

    What all ranks have in common is left out: it would move no work, and rates of a GPU are for ``shplb calibrate`` to
    measure.
    """

    def __init__(self, num_ranks: int) -> None:
        self._state = [NOMINAL_SPEED * _FINER] * num_ranks

    @property
    def values(self) -> npt.NDArray[np.int64]:
        """int64 ``[num_ranks]`` as ``StepPlanner.set_rank_speeds`` takes them."""
        return np.array([(state + _FINER // 2) // _FINER for state in self._state], dtype=np.int64)

    def update(self, measured_ms: npt.NDArray[np.float64], nominal_ns: npt.NDArray[np.int64]) -> bool:
        """Take in one sampled step; returns whether ``values`` changed.

        A sample that is not sound changes nothing, and layers shorter than LEAST_LAYER_NS on any rank don't count.

        Args:
            measured_ms: float64 ``[num_layers, num_ranks]``, attention of every layer.
            nominal_ns: int64 of that shape, the same by the cost model at nominal speed.
        """
        if not is_sound(measured_ms, nominal_ns):
            return False
        before, long = self.values, nominal_ns.min(axis=1) >= LEAST_LAYER_NS
        took = [int(total) for total in np.rint(measured_ms[long] * 1e6).astype(np.int64).sum(axis=0)]
        work = [int(total) for total in nominal_ns[long].sum(axis=0)]
        if min(took) == 0:
            return False
        for rank, state in enumerate(self._state):
            # The rank's work over its time, by that of all ranks together.
            found = NOMINAL_SPEED * _FINER * work[rank] * sum(took) // (took[rank] * sum(work))
            most = state // _STEP
            step = min(max((found - state) // _SLOWNESS, -most), most)
            self._state[rank] = min(max(state + step, LEAST_SPEED * _FINER), MOST_SPEED * _FINER)
        return not np.array_equal(before, self.values)
