# SPDX-License-Identifier: Apache-2.0
import numpy as np
import numpy.typing as npt

class InvalidArgument(ValueError): ...
class Infeasible(RuntimeError): ...

class Budgets:
    @property
    def density(self) -> npt.NDArray[np.float64]: ...
    @property
    def mean_density(self) -> float: ...
    @property
    def worst_recovery(self) -> float | None: ...
    @property
    def total_error(self) -> float | None: ...

class Placement:
    @property
    def head_to_rank(self) -> npt.NDArray[np.int32]: ...
    @property
    def rank_loads(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]: ...
    @property
    def imbalance(self) -> npt.NDArray[np.float64]: ...
    @property
    def lower_bound(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]: ...

def allocate_budgets(
    curves: npt.NDArray[np.float64],
    densities: npt.NDArray[np.float64],
    total_density: float,
    *,
    min_density: float = 0.0,
    scope: str = "model",
    objective: str = "max_min",
    zero: npt.NDArray[np.float64] | None = None,
    inert: npt.NDArray[np.bool_] | None = None,
) -> Budgets: ...
def place_heads(
    loads: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    num_ranks: int,
    *,
    equal_count: bool = True,
    method: str = "auto",
) -> Placement: ...
