# SPDX-License-Identifier: Apache-2.0
import numpy as np
import numpy.typing as npt

NOMINAL_SPEED: int
LEAST_SPEED: int
MOST_SPEED: int

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

class BalanceAwareBudgets:
    @property
    def density(self) -> npt.NDArray[np.float64]: ...
    @property
    def group_to_rank(self) -> npt.NDArray[np.int32]: ...
    @property
    def slowest_load(self) -> npt.NDArray[np.float64]: ...
    @property
    def mean_density(self) -> float: ...
    @property
    def total_error(self) -> float: ...

class Placement:
    @property
    def head_to_rank(self) -> npt.NDArray[np.int32]: ...
    @property
    def rank_loads(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]: ...
    @property
    def imbalance(self) -> npt.NDArray[np.float64]: ...
    @property
    def lower_bound(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]: ...

class ReplicaPlacement:
    @property
    def slot_groups(self) -> npt.NDArray[np.int32]: ...
    @property
    def rank_loads(self) -> npt.NDArray[np.int64]: ...
    @property
    def imbalance(self) -> npt.NDArray[np.float64]: ...
    @property
    def lower_bound(self) -> npt.NDArray[np.int64]: ...

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
def allocate_balance_aware(
    curves: npt.NDArray[np.float64],
    densities: npt.NDArray[np.float64],
    total_density: float,
    num_ranks: int,
    *,
    num_groups: int,
    min_density: float = 0.0,
    scope: str = "model",
    zero: npt.NDArray[np.float64] | None = None,
    inert: npt.NDArray[np.bool_] | None = None,
    group_to_rank: npt.NDArray[np.int32] | None = None,
    slowest_load: npt.NDArray[np.float64] | None = None,
) -> BalanceAwareBudgets: ...
def place_heads(
    loads: npt.NDArray[np.int64] | npt.NDArray[np.float64],
    num_ranks: int,
    *,
    equal_count: bool = True,
    method: str = "auto",
) -> Placement: ...
def place_replicas(
    loads: npt.NDArray[np.int64],
    num_ranks: int,
    num_replicas: int,
    *,
    method: str = "auto",
) -> ReplicaPlacement: ...
def divide_replicas(loads: npt.NDArray[np.int64], slot_groups: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]: ...

class CostModel:
    def __init__(
        self,
        *,
        item_ns: int = 2655,
        kv_tile_ns: int = 1391,
        dense_kv_tile_ns: int = 1297,
        select_pair_ps: int = 53,
        select_block_ps: int = 13872,
        pool_page_ps: int = 5222,
        layer_ns: int = 41086,
    ) -> None: ...
    @property
    def item_ns(self) -> int: ...
    @property
    def kv_tile_ns(self) -> int: ...
    @property
    def dense_kv_tile_ns(self) -> int: ...
    @property
    def select_pair_ps(self) -> int: ...
    @property
    def select_block_ps(self) -> int: ...
    @property
    def pool_page_ps(self) -> int: ...
    @property
    def layer_ns(self) -> int: ...

class WorkPlan:
    @property
    def plan_info(self) -> npt.NDArray[np.int64]: ...
    @property
    def order(self) -> npt.NDArray[np.int32]: ...
    @property
    def cta_loads(self) -> npt.NDArray[np.int64]: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def makespan_ns(self) -> int: ...
    @property
    def lower_bound_ns(self) -> int: ...

class StepPlan:
    @property
    def sparse(self) -> npt.NDArray[np.uint8]: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_lists(self) -> int: ...
    @property
    def num_items(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def block_request_offset(self) -> int: ...
    @property
    def block_first_row_offset(self) -> int: ...
    @property
    def block_qo_indptr_offset(self) -> int: ...
    @property
    def block_qo_len_offset(self) -> int: ...
    @property
    def plan_info(self) -> npt.NDArray[np.int64]: ...
    @property
    def list_indptr_offset(self) -> npt.NDArray[np.int64]: ...
    @property
    def list_pages(self) -> npt.NDArray[np.int64]: ...
    @property
    def cta_makespan_ns(self) -> npt.NDArray[np.int64]: ...
    @property
    def rank_makespan_ns(self) -> npt.NDArray[np.int64]: ...
    @property
    def owned_blocks(self) -> npt.NDArray[np.int32]: ...
    @property
    def step_ns(self) -> int: ...
    @property
    def dense_ns(self) -> int: ...

class StepPlanner:
    def __init__(
        self,
        *,
        num_kv_heads: int,
        head_dim: int,
        keep_pages: npt.NDArray[np.int32],
        slot_groups: npt.NDArray[np.int32],
        rank: int,
        sink_pages: int = 1,
        local_pages: int = 1,
        shared_lists: bool = False,
        num_ctas: int = 132,
        cost: CostModel = ...,
        num_threads: int = 1,
    ) -> None: ...
    def buffer_bytes(self, num_requests: int, num_new_tokens: int) -> int: ...
    def plan(
        self,
        prefix_lens: npt.NDArray[np.int64],
        new_lens: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint8],
        mode: str = "auto",
        stock: npt.NDArray[np.uint8] | None = None,
    ) -> StepPlan: ...
    def predict(
        self,
        prefix_lens: npt.NDArray[np.int64],
        new_lens: npt.NDArray[np.int64],
        mode: str = "auto",
        stock: npt.NDArray[np.uint8] | None = None,
    ) -> StepPlan: ...
    def set_rank_speeds(self, speeds: npt.NDArray[np.int64]) -> None: ...
    def decode_loads(self, kv_lens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]: ...

class Simulation:
    @property
    def step_ns(self) -> npt.NDArray[np.int64]: ...
    @property
    def dense_ns(self) -> npt.NDArray[np.int64]: ...
    @property
    def makespan_ns(self) -> npt.NDArray[np.int64]: ...
    @property
    def rank_ns(self) -> npt.NDArray[np.int64]: ...
    @property
    def num_sparse(self) -> npt.NDArray[np.int64]: ...
    @property
    def bubble(self) -> npt.NDArray[np.float64]: ...

def work_plan_bytes(num_items: int, num_ctas: int) -> int: ...
def plan_work(
    qo_indptr: npt.NDArray[np.int32],
    qo_lens: npt.NDArray[np.int32],
    kv_indptr: npt.NDArray[np.int32],
    kv_lens: npt.NDArray[np.int32],
    head_indices: npt.NDArray[np.int32],
    out: npt.NDArray[np.uint8],
    *,
    num_ctas: int,
    head_dim: int,
    cost: CostModel,
    method: str = "auto",
) -> WorkPlan: ...
def simulate(
    planner: StepPlanner,
    step_indptr: npt.NDArray[np.int64],
    prefix_lens: npt.NDArray[np.int64],
    new_lens: npt.NDArray[np.int64],
    mode: str = "auto",
) -> Simulation: ...
