# SPDX-License-Identifier: Apache-2.0
"""Per-step metadata: the query blocks of a prefill batch and how many pages each head may keep for each of them."""

import msgspec
import numpy as np

from shplb.plan import ServingPlan
from shplb.sparsity import BudgetTable, SparsityRule, num_pages


class QueryBlock(msgspec.Struct, frozen=True):
    """Rows [first_row, end_row) of one request, absolute positions; ``offset`` is the first row's place in q."""

    request: int
    offset: int
    first_row: int
    end_row: int


def cut_query_blocks(prefix_lens: list[int], new_lens: list[int], block_size: int) -> list[QueryBlock]:
    """Cut the new tokens of every request at absolute multiples of ``block_size`` in the request.

    Absolute cuts make a block's pages independent of batch and, where chunks end on them, of chunking.
    """
    blocks, offset = [], 0
    for request, (prefix, new) in enumerate(zip(prefix_lens, new_lens, strict=True)):
        row, end = prefix, prefix + new
        while row < end:
            cut = min((row // block_size + 1) * block_size, end)
            blocks.append(QueryBlock(request, offset + row - prefix, row, cut))
            row = cut
        offset += new
    return blocks


class StepBudgets:
    """List lengths of one prefill step for all layers and heads, and what they cost each rank.

    Attributes:
        blocks: query blocks in batch order.
        keep: int32 [num_layers, num_qo_heads, num_blocks], pages kept, heads in logical order.
        visible: int64 [num_blocks], pages that causality lets a block see.
        whole: per request, whether every page is kept, whatever budgets or scores say.
        dense: True when every head keeps every page, so that the base backend can run the step.
    """

    def __init__(
        self, table: BudgetTable, prefix_lens: list[int], new_lens: list[int], stock: list[bool] | None = None
    ) -> None:
        """stock: per request, whether it keeps every page whatever its budgets."""
        rule: SparsityRule = table.rule
        self.blocks = cut_query_blocks(prefix_lens, new_lens, rule.query_block)
        ends = np.array([block.end_row for block in self.blocks], dtype=np.int64)
        self.rows = np.array([block.end_row - block.first_row for block in self.blocks], dtype=np.int64)
        self.visible = np.array([num_pages(int(end)) for end in ends], dtype=np.int64)
        forced = np.array([rule.num_forced(block.first_row, block.end_row) for block in self.blocks], dtype=np.int32)
        self.keep = table.keep(self.visible, forced)
        # One new token is a decode step (of a mixed batch) or costs as little as one: dense, like all decoding.
        self.whole = [new == 1 or kept for new, kept in zip(new_lens, stock or [False] * len(new_lens), strict=True)]
        dense = [index for index, block in enumerate(self.blocks) if self.whole[block.request]]
        self.keep[:, :, dense] = self.visible[dense]
        self.dense = bool(np.all(self.keep == self.visible))

    def group_loads(self, plan: ServingPlan) -> np.ndarray:
        """int64 [num_layers, num_kv_heads]: (query row, kept page) pairs of logical KV groups; 0 for inert ones."""
        work = (self.keep.astype(np.int64) * self.rows).sum(axis=2)
        model = plan.model
        loads = work.reshape(model.num_layers, model.num_kv_heads, model.group_size).sum(axis=2)
        loads[:, list(model.inert_kv_heads)] = 0
        return np.asarray(loads)

    def causal_row_pages(self, plan: ServingPlan) -> int:
        """What dense attention would compute in the same unit, inert heads left out."""
        model = plan.model
        heads = model.num_qo_heads - len(model.inert_kv_heads) * model.group_size
        return int((self.visible * self.rows).sum()) * heads * model.num_layers
