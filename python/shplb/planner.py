# SPDX-License-Identifier: Apache-2.0
"""Per-step plans: which CTA of which rank computes which query rows of which head against which pages.

Everything here runs on the CPU before the GPU starts the step, and depends on lengths only.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from shplb import _core
from shplb._core import LEAST_SPEED, MOST_SPEED, NOMINAL_SPEED, CostModel, StepPlan, WorkPlan

__all__ = [
    "LEAST_SPEED",
    "MOST_SPEED",
    "NOMINAL_SPEED",
    "CostModel",
    "Mode",
    "StepPlan",
    "StepPlanner",
    "WorkMethod",
    "WorkPlan",
    "plan_work",
    "work_plan_bytes",
]

Mode = Literal["auto", "sparse", "dense"]
WorkMethod = Literal["auto", "longest_first", "snake"]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


class StepPlanner:
    """Plans every prefill step of one rank; built once per server.

    Query blocks are cut at absolute multiples of the kernel's query tile (192 rows at head_dim 64, else 128) in each
    request and numbered through the sparse requests in batch order. Every rank decides alike, with integers only.
    Calls from several threads wait for each other; use one planner per thread to plan at the same time.
    """

    def __init__(
        self,
        *,
        num_kv_heads: int,
        head_dim: int,
        keep_pages: Int32Array,
        slot_groups: Int32Array,
        rank: int,
        sink_pages: int = 1,
        local_pages: int = 1,
        shared_lists: bool = False,
        num_ctas: int = 132,
        cost: CostModel | None = None,
        num_threads: int = 1,
    ) -> None:
        """Check and tabulate. O(layers * (heads + ranks) * max_pages) time; tables of about 24 bytes per
        (layer, rank, page).

        Args:
            num_kv_heads: KV heads of the whole model.
            head_dim: 64, 128 or 256.
            keep_pages: int32 ``[num_layers, num_qo_heads, max_pages + 1]``, heads in the model's own order: pages a
                query block may keep when it sees n pages; 0 at n = 0, else in [1, n] (``BudgetTable.pages``).
            slot_groups: int32 ``[num_layers, num_ranks, num_slots]``, logical KV group in each slot of each rank
                (``ServingPlan.physical_to_logical`` in that shape). A group may have a second copy on another rank;
                the two then divide its work items (query blocks x heads), step by step.
            rank: whose tables ``plan`` writes.
            sink_pages, local_pages: kept whatever the budget, as are the pages of the diagonal.
            shared_lists: one page list per KV group, as long as its longest head's, instead of one per query head.
            num_ctas: streaming multiprocessors of the GPU.
            cost: rates of this GPU; default: measured on an H200.
            num_threads: threads that plan layers side by side, the calling one counted in, 1 to 64; they sleep
                between steps. The plan does not depend on it.

        Raises:
            InvalidArgument: names the argument, got and expected.
        """
        self._core = _core.StepPlanner(
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            keep_pages=keep_pages,
            slot_groups=slot_groups,
            rank=rank,
            sink_pages=sink_pages,
            local_pages=local_pages,
            shared_lists=shared_lists,
            num_ctas=num_ctas,
            cost=CostModel() if cost is None else cost,
            num_threads=num_threads,
        )

    def buffer_bytes(self, num_requests: int, num_new_tokens: int) -> int:
        """Bytes of ``out`` that suffice for any step of up to so many requests and new tokens."""
        return self._core.buffer_bytes(num_requests, num_new_tokens)

    def plan(
        self,
        prefix_lens: Int64Array,
        new_lens: Int64Array,
        out: npt.NDArray[np.uint8],
        mode: Mode = "auto",
        stock: npt.NDArray[np.uint8] | None = None,
    ) -> StepPlan:
        """Plan one step. O(layers * query heads * blocks).

        Args:
            prefix_lens, new_lens: int64 ``[num_requests]``, cached and new (>= 1) tokens; the new tokens are the rows
                of q, request after request.
            out: uint8, writable, 16-byte aligned, of ``buffer_bytes``; pinned memory in use. All int32 tables of all
                layers are written into it, at the byte offsets the result names, so one upload moves them. Keep it
                untouched until the upload is done: take another buffer for the next step.
            mode: ``auto`` sends a request to the stock path where that is predicted to end sooner: by makespan,
                max(sum / CTAs, longest item), since the sparse kernel never splits an item over its keys. A request
                with one new token decodes (in a mixed batch) and is never sparse.
            stock: uint8 ``[num_requests]``, not 0 for requests that belong to the stock path whatever the mode; by
                default none does.

        Returns:
            ``.plan_info[layer]`` is what FlashInfer's sm90 kernel takes, given a copy of ``out`` as its int
            workspace; ``int32 [num_lists + 1]`` at ``.list_indptr_offset[layer]`` says where page selection puts the
            pages of list ``j * num_blocks + b`` (query head j of this rank, or KV slot j under ``shared_lists``; block
            b). Requests with ``.sparse[i] == 0`` are not in the tables. Of a group that another
            rank holds, too, only blocks in ``.owned_blocks[layer, j]`` (half-open) are: other lists are empty and have
            no work item. Nothing is left of an earlier plan.
        """
        return self._core.plan(prefix_lens, new_lens, out, mode, stock)

    def predict(
        self,
        prefix_lens: Int64Array,
        new_lens: Int64Array,
        mode: Mode = "auto",
        stock: npt.NDArray[np.uint8] | None = None,
    ) -> StepPlan:
        """``plan`` without tables: sparse, num_blocks, owned_blocks, rank_makespan_ns, step_ns and dense_ns."""
        return self._core.predict(prefix_lens, new_lens, mode, stock)

    def set_rank_speeds(self, speeds: Int64Array) -> None:
        """How fast ranks are against the cost model, from the next step on (``shplb.rank_speeds`` measures it).

        Replicas' work moves between their ranks such that they still end together, and ``rank_makespan_ns`` is what
        ranks of these speeds take. Nothing else changes: which requests run sparse, and over which pages, is decided
        at nominal speed. Every rank must set the same speeds before the same step.

        Args:
            speeds: int64 ``[num_ranks]`` in 1/NOMINAL_SPEED (1/1024), from LEAST_SPEED to MOST_SPEED (a quarter slower
                and faster).

        Raises:
            InvalidArgument: names the rank, got and expected.
        """
        self._core.set_rank_speeds(speeds)

    def decode_loads(self, kv_lens: Int64Array) -> Int64Array:
        """int64 ``[num_layers, num_ranks]``: summed CTA time (ns) of sparse decoding.

        Args:
            kv_lens: int64 ``[num_requests]``, cached tokens of each request, which decodes one more.
        """
        return self._core.decode_loads(kv_lens)


def work_plan_bytes(num_items: int, num_ctas: int) -> int:
    """Bytes of ``out`` that ``plan_work`` needs."""
    return _core.work_plan_bytes(num_items, num_ctas)


def plan_work(
    qo_indptr: Int32Array,
    qo_lens: Int32Array,
    kv_indptr: Int32Array,
    kv_lens: Int32Array,
    head_indices: Int32Array,
    out: npt.NDArray[np.uint8],
    *,
    num_ctas: int,
    head_dim: int,
    cost: CostModel | None = None,
    method: WorkMethod = "auto",
) -> WorkPlan:
    """Assigns work items to the CTAs of one GPU and writes FlashInfer 0.6.12's sm90 tables. O(items).

    Item i computes rows [qo_indptr[i], qo_indptr[i] + qo_lens[i]) of query head head_indices[i] against the first
    kv_lens[i] tokens of the page list at entry kv_indptr[i]. Give items that share a list one after the other: they
    then run side by side on different CTAs and share the pages in L2.

    Args:
        qo_indptr, qo_lens, kv_indptr, kv_lens, head_indices: int32 ``[num_items]``. Rows per item: at most one query
            tile. kv_lens: tokens, 0 (the output is 0) or at least qo_lens, since the causal mask is right-aligned.
        out: uint8, writable, 16-byte aligned, at least ``work_plan_bytes``.
        num_ctas: streaming multiprocessors of the GPU.
        head_dim: 64, 128 or 256.
        method: ``longest_first`` onto the least loaded CTA (Graham 1969), with loads in buckets; ``snake`` deals the
            sorted items forth and back; ``auto`` deals long tables and leaves their short items to longest-first.

    Returns:
        ``.plan_info`` int64 [9], ``.order`` int32 [num_items] (item at each position), ``.cta_loads`` int64
        [num_ctas] in ns, ``.makespan_ns``, ``.lower_bound_ns``, ``.num_bytes``.

    Raises:
        InvalidArgument: names the argument, got and expected.
    """
    return _core.plan_work(
        qo_indptr,
        qo_lens,
        kv_indptr,
        kv_lens,
        head_indices,
        out,
        num_ctas=num_ctas,
        head_dim=head_dim,
        cost=CostModel() if cost is None else cost,
        method=method,
    )
