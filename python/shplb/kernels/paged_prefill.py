# SPDX-License-Identifier: Apache-2.0
"""Sparse prefill of one rank over a paged KV pool: plan a step, then select pages and attend, layer after layer.

Nothing here waits for the GPU: list lengths are planned on the CPU from request lengths, list contents are found and
used on the GPU.
"""

from collections.abc import Callable

import numpy as np
import torch

from shplb.kernels.choice import PagedKernel
from shplb.kernels.copies import weigh_copies
from shplb.kernels.covering import covering_counts
from shplb.kernels.dealt_plan import Blocks, deal_work
from shplb.kernels.latest_pages import latest_pages
from shplb.kernels.page_mass import TileShape, page_mass
from shplb.kernels.paged_scores import score_of
from shplb.kernels.paged_step import PagedStep, words_at
from shplb.kernels.pooling import pool_keys, pool_queries, runs_of_block
from shplb.kernels.staging import StagingRing
from shplb.kernels.top_pages import top_pages
from shplb.planner import Mode, StepPlan, StepPlanner
from shplb.sparsity import PAGE_SIZE, SparsityRule

_ALIGNMENT = 16


class PagedPrefill:
    """Built once per rank; one step at a time."""

    def __init__(
        self,
        planner: StepPlanner,
        attention: PagedKernel,
        rule: SparsityRule,
        *,
        num_list_heads: int,
        group_size: int,
        device: torch.device,
        usual_requests: int = 1,
        usual_new_tokens: int = 8192,
        copied: np.ndarray | None = None,
    ) -> None:
        """num_list_heads: page lists per query block on this rank, one per query head or one per KV head; usual_*:
        size of the steps that staging buffers are made for (larger ones make them grow); copied: bool
        ``[num_layers, num_list_heads]``, lists of KV groups that another rank holds, too."""
        self.planner, self.attention, self.rule = planner, attention, rule
        self.num_list_heads, self.device = num_list_heads, device
        self._score = score_of(rule)
        self._fill = self.latest_pages if rule.choice == "a_shape" else self.top_pages
        self._deals = rule.choice == "top_p"
        self._copied = None if copied is None else torch.from_numpy(copied.astype(np.uint8)).to(device)
        self._tile_blocks = TileShape.of(group_size, runs_of_block(rule.query_block, rule.score_stride)).blocks
        self._staging = StagingRing(self._bytes(usual_requests, usual_new_tokens), device)

    def _bytes(self, num_requests: int, num_new_tokens: int) -> int:
        """The planner's tables and ours behind them: tiles, page starts, dense rows."""
        blocks = num_new_tokens // self.rule.query_block + 2 * num_requests
        ours = 4 * (2 * blocks + num_requests + num_new_tokens) + 5 * _ALIGNMENT
        if self._copied is not None:
            ours += 8 * self._copied.numel()
        return self.planner.buffer_bytes(num_requests, num_new_tokens) + ours

    def begin_step(
        self,
        prefix_lens: list[int],
        new_lens: list[int],
        req_to_token: torch.Tensor,
        req_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        mode: Mode = "auto",
        stock: list[bool] | None = None,
    ) -> PagedStep | None:
        """Plan a step and start the upload of its tables; None when every request belongs to the stock path.

        prefix_lens, new_lens: cached and new tokens of every request; req_to_token: int32 ``[.., max_tokens]``;
        req_indices, seq_lens: int ``[num_requests]`` on the device, row of req_to_token and prefix + new tokens; stock:
        requests that belong to the stock path whatever the mode.
        """
        prefix, new = np.array(prefix_lens, dtype=np.int64), np.array(new_lens, dtype=np.int64)
        buffer = self._staging.begin(self._bytes(len(new), int(new.sum())))
        plan = self.planner.plan(prefix, new, buffer, mode, None if stock is None else np.array(stock, dtype=np.uint8))
        if plan.num_blocks == 0:
            return None
        sparse = plan.sparse.astype(bool)
        pages = np.where(sparse, -(-(prefix + new) // PAGE_SIZE), 0)
        starts = np.where(sparse, np.cumsum(pages) - pages, -1)
        tiles = self._cut_tiles(prefix[sparse], new[sparse])
        dense = np.flatnonzero(np.repeat(~sparse, new))
        writer = _Writer(buffer, plan.num_bytes)
        at = [writer.add(array) for array in (starts, tiles, dense)]
        owned = plan.owned_blocks
        owned_at = 0 if self._copied is None else writer.add(owned)
        workspace = self._staging.upload(writer.used)
        return PagedStep(
            plan=plan,
            plan_info=plan.plan_info.tolist(),
            workspace=workspace,
            host=buffer,
            total_pages=int(pages.sum()),
            max_pages=int(pages.max()),
            page_starts=words_at(workspace, at[0], len(starts)),
            tiles=words_at(workspace, at[1], tiles.size).view(-1, 2),
            dense_rows=words_at(workspace, at[2], len(dense)) if len(dense) else None,
            owned=None if self._copied is None else words_at(workspace, owned_at, owned.size).view(owned.shape),
            req_to_token=req_to_token,
            req_indices=req_indices,
            seq_lens=seq_lens,
            page_indices=torch.empty(self._most_pages(plan, buffer), dtype=torch.int32, device=self.device),
            lens=(prefix, new),
        )

    def _most_pages(self, plan: StepPlan, buffer: np.ndarray) -> int:
        """Entries of a layer's lists: as planned, or all that causality allows where scores decide."""
        if not self._deals:
            return max(int(plan.list_pages.max()), 1)
        first, rows = (
            buffer[offset : offset + 4 * plan.num_blocks].view(np.int32)
            for offset in (plan.block_first_row_offset, plan.block_qo_len_offset)
        )
        return int((-(-(first + rows) // PAGE_SIZE)).sum()) * self.num_list_heads

    def _cut_tiles(self, prefix: np.ndarray, new: np.ndarray) -> np.ndarray:
        """[num_tiles, 2]: ranges of blocks of one request each, as long as a tile of pooled queries takes."""
        size, block = self._tile_blocks, self.rule.query_block
        tiles: list[tuple[int, int]] = []
        start = 0
        # Few requests and tiles as a rule, where loops are faster than array operations.
        for prefix_tokens, new_tokens in zip(prefix.tolist(), new.tolist(), strict=True):
            end = start + (prefix_tokens + new_tokens - 1) // block - prefix_tokens // block + 1
            tiles += [(first, min(first + size, end)) for first in range(start, end, size)]
            start = end
        return np.array(tiles, dtype=np.int32)

    def select(
        self, step: PagedStep, layer: int, q: torch.Tensor, k_pool: torch.Tensor, sm_scale: float,
        observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Fill this layer's page lists, int32; ``observe`` gets (pages of the request, scores) for traces and tests."""
        scores = self._score(self, step, q, k_pool, sm_scale, layer)
        if self._deals:
            self._deal(step, layer, scores)
        self._fill(step, layer, scores, step.page_indices)
        if observe is not None:
            pages = torch.empty_like(step.page_indices)
            self._fill(step, layer, scores, pages, physical=False)
            observe(pages, scores)
        return step.page_indices

    def _deal(self, step: PagedStep, layer: int, scores: torch.Tensor) -> None:
        """Plan the layer from its scores, on the GPU."""
        step.dealt = None
        _, first_row, qo_len = self._block_arrays(step)
        counts = covering_counts(scores, step.list_indptr(layer), first_row, qo_len, self.num_list_heads, self.rule)
        blocks = Blocks(step.blocks(step.plan.block_qo_indptr_offset), qo_len, first_row)
        step.dealt = deal_work(counts, blocks, scores.shape[0] // self.num_list_heads, self.attention.num_ctas)

    def pool_keys(self, step: PagedStep, k_pool: torch.Tensor) -> torch.Tensor:
        return pool_keys(
            k_pool, step.req_to_token, step.req_indices, step.seq_lens, step.page_starts, step.total_pages,
            step.max_pages, self.rule.score_stride,
        )  # fmt: skip

    def pool_queries(self, step: PagedStep, q: torch.Tensor) -> torch.Tensor:
        _, first_row, qo_len = self._block_arrays(step)
        qo_indptr = step.blocks(step.plan.block_qo_indptr_offset)
        return pool_queries(q, first_row, qo_indptr, qo_len, self.rule.query_block, self.rule.score_stride)

    def page_mass(
        self, step: PagedStep, queries: torch.Tensor, keys: torch.Tensor, sm_scale: float, layer: int = 0
    ) -> torch.Tensor:
        return page_mass(
            queries, keys, step.tiles, *self._block_arrays(step), step.page_starts, step.max_pages,
            self.rule.score_stride, sm_scale, None if step.owned is None else step.owned[layer],
        )  # fmt: skip

    def top_pages(
        self, step: PagedStep, layer: int, scores: torch.Tensor, out: torch.Tensor, *, physical: bool = True
    ) -> None:
        top_pages(
            scores, step.list_indptr(layer), *self._block_arrays(step), step.req_to_token, step.req_indices,
            self.num_list_heads, self.rule, out, physical=physical,
        )  # fmt: skip

    def latest_pages(
        self, step: PagedStep, layer: int, scores: torch.Tensor, out: torch.Tensor, *, physical: bool = True
    ) -> None:
        """As :meth:`top_pages`, whatever the scores."""
        latest_pages(
            step.list_indptr(layer), *self._block_arrays(step), step.req_to_token, step.req_indices,
            self.num_list_heads, self.rule, out, physical=physical,
        )  # fmt: skip

    @staticmethod
    def _block_arrays(step: PagedStep) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Request, first row and rows of every block."""
        plan = step.plan
        return (
            step.blocks(plan.block_request_offset),
            step.blocks(plan.block_first_row_offset),
            step.blocks(plan.block_qo_len_offset),
        )

    def run(
        self, step: PagedStep, layer: int, q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor,
        sm_scale: float, out: torch.Tensor,
        observe: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> None:  # fmt: skip
        """Attention of the step's sparse requests into their rows of ``out``.

        q, out: ``[num_rows, num_qo_heads, head_dim]``; k_pool, v_pool: ``[pool_tokens, num_kv_heads, head_dim]``,
        which already hold the new tokens.
        """
        pages = self.select(step, layer, q, k_pool, sm_scale, observe)
        self.attend(step, layer, pages, q, k_pool, v_pool, sm_scale, out)

    def attend(
        self, step: PagedStep, layer: int, pages: torch.Tensor, q: torch.Tensor, k_pool: torch.Tensor,
        v_pool: torch.Tensor, sm_scale: float, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """The second half of :meth:`run`, over ``pages`` from :meth:`select`."""
        self.attention.run_layer(step, layer, pages, q, k_pool, v_pool, sm_scale, out)
        if step.owned is not None and self._copied is not None:
            _, _, qo_len = self._block_arrays(step)
            weigh_copies(
                out, self._copied[layer], step.owned[layer], step.blocks(step.plan.block_qo_indptr_offset), qo_len
            )


class _Writer:
    """Appends int32 arrays to a byte buffer."""

    def __init__(self, buffer: np.ndarray, used: int) -> None:
        self._buffer, self.used = buffer, used

    def add(self, values: np.ndarray) -> int:
        start = -(-self.used // _ALIGNMENT) * _ALIGNMENT
        self.used = start + 4 * values.size
        self._buffer[start : self.used].view(np.int32)[:] = values.ravel()
        return start
