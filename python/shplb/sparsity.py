# SPDX-License-Identifier: Apache-2.0
"""The sparsity rule in one place: what a page and a query block are, and which pages are always kept."""

from typing import Literal, get_args

import msgspec
import numpy as np

PAGE_SIZE = 64  # tokens
MOST_TOKENS = 1 << 30  # far beyond any context, and small enough for the integers of a budget table

#: A budget is above 0; the pages that are always kept make it a list. Heads of padding have this one.
LEAST_BUDGET = 1e-6

#: What pages are scored by, and how scores become lists; ``shplb.policies`` says what each is and where it is from.
ScoreName = Literal["mean_pool", "antidiagonal", "min_max", "oracle"]
ChoiceName = Literal["top_k", "top_p", "a_shape", "vertical_slash"]


def query_block_size(head_dim: int) -> int:
    """Rows of a query block: one tile of FlashInfer's sm90 prefill kernel (192 rows at head_dim 64, else 128)."""
    return 192 if head_dim == 64 else 128


class SparsityRule(msgspec.Struct, frozen=True):
    """Which pages are kept whatever their score, how pages are scored, and how scores become lists.

    Sink and diagonal pages carry most of what a head can't do without: without the sink page perplexity
    multiplies (12 to 42 in a 4K survey), so no budget may drop them.
    """

    query_block: int
    sink_pages: int = 1
    local_pages: int = 1  # pages before the diagonal ones
    floor_pages: int = 4
    dense_below_tokens: int = 1024  # blocks that see at most this many tokens keep every page
    dense_tail_tokens: int = 0  # blocks that hold any of a prompt's last so many tokens keep every page
    score: str = "mean_pool"
    score_stride: int = 16  # tokens averaged (or strided over) into one query or key of the estimate
    choice: str = "top_k"
    coverage: float = 0.9  # of top_p: share of the estimated mass that a list must hold

    def __post_init__(self) -> None:
        for field, value, known in (("score", self.score, ScoreName), ("choice", self.choice, ChoiceName)):
            if value not in get_args(known):
                raise ValueError(f"{field} is '{value}', expected {' or '.join(get_args(known))}")
        if not 0.0 < self.coverage <= 1.0:
            raise ValueError(f"coverage is {self.coverage}, expected a share of the estimated mass in (0, 1]")
        if self.query_block < 1 or self.score_stride < 1 or PAGE_SIZE % self.score_stride:
            raise ValueError(
                f"query_block is {self.query_block} and score_stride {self.score_stride}, expected positive numbers, "
                f"the stride a divisor of {PAGE_SIZE}"
            )
        counts = ("sink_pages", "local_pages", "floor_pages", "dense_below_tokens", "dense_tail_tokens")
        for field in counts:
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}, expected 0 or more")

    def forced_pages(self, first_row: int, end_row: int) -> tuple[int, int]:
        """(end of the sink pages, first local page) of the query block piece that covers rows [first_row, end_row)."""
        first_local = max(first_row // PAGE_SIZE - self.local_pages, 0)
        return min(self.sink_pages, first_local), first_local

    def tail_start(self, length: int) -> int:
        """First token of a prompt's dense tail, at the edge of a query block; ``length`` where it has none."""
        if self.dense_tail_tokens == 0:
            return length
        return max(length - self.dense_tail_tokens, 0) // self.query_block * self.query_block

    def num_forced(self, first_row: int, end_row: int) -> int:
        sink_end, first_local = self.forced_pages(first_row, end_row)
        return sink_end + num_pages(end_row) - first_local


def num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)


def floor_share(rule: SparsityRule, length: int) -> float:
    """Share of the visible pages that ``rule.floor_pages`` are to the usual block of a profiled length: a block at
    length n sees about 3n/4 tokens."""
    return min(rule.floor_pages / num_pages(3 * length // 4), 1.0)


def visible_pages(prefix: int, new: int, query_block: int) -> int:
    """Pages that causality lets the query blocks of ``new`` tokens after ``prefix`` see, summed over the blocks."""
    if new == 0:
        return 0
    first, last = prefix // query_block, (prefix + new - 1) // query_block
    return query_block // PAGE_SIZE * (last * (last + 1) - first * (first + 1)) // 2 + num_pages(prefix + new)


class BudgetTable:
    """Pages kept per (layer, query head) as a function of visible pages, tabulated once.

    Every rank builds the same integers from the same plan, so that ranks agree on list lengths without a message.
    Between profiled lengths the share of kept pages is interpolated linearly in log2(length). Above the longest it
    stays constant, which is conservative (needed shares shrink with length); below the shortest it also stays.
    """

    def __init__(self, budgets: np.ndarray, lengths: np.ndarray, rule: SparsityRule, max_tokens: int) -> None:
        """budgets: float64 ``[num_layers, num_qo_heads, num_lengths]`` in (0, 1]; lengths: ascending int64 tokens."""
        self.rule = rule
        visible = np.arange(num_pages(max_tokens) + 1)
        position = np.log2(np.maximum(visible, 1) * PAGE_SIZE)
        knots = np.log2(lengths)
        low = np.clip(np.searchsorted(knots, position, side="right") - 1, 0, len(knots) - 1)
        high = np.minimum(low + 1, len(knots) - 1)
        gap = np.where(high > low, knots[high] - knots[low], 1.0)
        weight = np.clip((position - knots[low]) / gap, 0.0, 1.0)
        share = budgets[:, :, low] * (1.0 - weight) + budgets[:, :, high] * weight
        # The 1e-9 keeps a share that is exactly k/n from being rounded up to k+1 pages.
        kept = np.ceil(share * visible - 1e-9).astype(np.int32)
        dense = visible * PAGE_SIZE <= rule.dense_below_tokens
        kept[:, :, dense] = visible[dense]
        #: int32 [num_layers, num_qo_heads, max_pages + 1], C-contiguous as the core takes it
        self.pages = np.clip(kept, np.minimum(rule.floor_pages, visible), visible).astype(np.int32, order="C")

    def keep(self, visible: np.ndarray, forced: np.ndarray) -> np.ndarray:
        """List lengths, int32 ``[num_layers, num_qo_heads, num_blocks]``, for blocks that see ``visible`` pages."""
        return np.asarray(np.maximum(self.pages[:, :, visible], forced))
