# SPDX-License-Identifier: Apache-2.0
"""Page choice in torch, by its definitions: which pages every head keeps for a query block.

* ``top_k``: the planned number of pages with the highest scores (``kernels.scores``);
* ``top_p``: as few pages as hold ``rule.coverage`` of the scores, counted head by head and block by block (XAttention,
  arXiv 2503.16428; FlexPrefill, arXiv 2502.20766). The planned number is not used;
* ``a_shape``: the sink pages and the latest ones, as many as planned (StreamingLLM, arXiv 2309.17453; A-shape heads of
  MInference, arXiv 2407.02490). Nothing is scored;
* ``vertical_slash``: the planned number of pages on the columns and diagonals that the last queries of the new tokens
  attend to (vertical-slash heads of MInference). There each head has a number of columns and one of diagonals from an
  offline search, here both compete for the planned pages.

Sink, diagonal and local pages are kept whatever the choice, and blocks that see few tokens keep everything.
"""

import torch

from shplb.kernels.lines import Lines
from shplb.kernels.scores import key_vectors, page_scores
from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages


def rank_pages(scores: torch.Tensor, first_row: int, end_row: int, rule: SparsityRule) -> torch.Tensor:
    """Pages in the order in which they are kept: forced ones first, then by descending score.

    Ties go to the lower page index. scores: [num_heads, num_visible_pages]; returns int64 of the same shape.
    """
    sink_end, first_local = rule.forced_pages(first_row, end_row)
    ranked = scores.clone()
    ranked[:, :sink_end] = float("inf")
    ranked[:, first_local:] = float("inf")
    return torch.sort(ranked, dim=-1, descending=True, stable=True).indices


def select_pages(order: torch.Tensor, keep: list[int]) -> list[torch.Tensor]:
    """The first ``keep[h]`` pages of each head's order, ascending: one int64 list per head."""
    return [torch.sort(order[head, :count]).values for head, count in enumerate(keep)]


def covering_counts(
    scores: torch.Tensor, order: torch.Tensor, first_row: int, end_row: int, rule: SparsityRule
) -> list[int]:
    """Per head, how many pages of ``order`` hold ``rule.coverage`` of the scores; never fewer than are forced."""
    visible = num_pages(end_row)
    if visible * PAGE_SIZE <= rule.dense_below_tokens:
        return [visible] * len(scores)
    least = max(rule.num_forced(first_row, end_row), min(rule.floor_pages, visible))
    held = torch.cumsum(torch.gather(scores, 1, order).double(), dim=1)
    missing = (held < rule.coverage * held[:, -1:]).sum(dim=1)
    return [min(max(int(count) + 1, least), visible) for count in missing]


def latest_pages(first_row: int, end_row: int, keep: list[int], rule: SparsityRule) -> list[torch.Tensor]:
    """Per head the sink pages and the last ones up to the block's own, ``keep[h]`` together, ascending."""
    sink_end, _ = rule.forced_pages(first_row, end_row)
    visible = num_pages(end_row)
    page = torch.arange(visible)
    return [page[(page < min(sink_end, count)) | (page >= visible - count + sink_end)] for count in keep]


class RequestPages:
    """Chooses the pages of one request's query blocks in one layer."""

    def __init__(
        self, rule: SparsityRule, q: torch.Tensor, k: torch.Tensor, prefix: int, sm_scale: float, *, whole: bool = False
    ) -> None:
        """q: [num_new_tokens, num_qo_heads, head_dim], the first at position ``prefix``; k: [prefix + num_new_tokens,
        num_kv_heads, head_dim]; whole: every page is kept, whatever the scores."""
        self._whole = whole
        self._rule, self._q, self._prefix, self._sm_scale = rule, q, prefix, sm_scale
        self._lines = Lines(q, k, sm_scale) if rule.choice == "vertical_slash" else None
        scored = rule.choice in ("top_k", "top_p")
        self._keys = key_vectors(k, rule) if scored else None

    def choose(self, first_row: int, end_row: int, keep: list[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(pages of each head, ascending int64, scores float32 [num_qo_heads, num_visible_pages]).

        keep: pages planned for each head: at least those that are forced, or 0 where the block is another rank's.
        """
        rule = self._rule
        if rule.choice == "a_shape":
            empty = torch.zeros((len(keep), num_pages(end_row)), device=self._q.device)
            pages = latest_pages(first_row, end_row, keep, rule)
            return [kept.to(self._q.device) for kept in pages], empty
        scores = self._scores(first_row, end_row)
        order = rank_pages(scores, first_row, end_row, rule)
        if rule.choice == "top_p" and not self._whole:
            counts = covering_counts(scores, order, first_row, end_row, rule)
            keep = [count if planned else 0 for count, planned in zip(counts, keep, strict=True)]
        return select_pages(order, keep), scores

    def _scores(self, first_row: int, end_row: int) -> torch.Tensor:
        if self._lines is not None:
            first, end = torch.tensor([[first_row], [end_row]], device=self._q.device)
            return self._lines.page_scores(first, end, self._rule.query_block)[:, 0, : num_pages(end_row)]
        assert self._keys is not None
        rows = self._q[first_row - self._prefix : end_row - self._prefix]
        return page_scores(rows, self._keys, first_row, self._sm_scale, self._rule)
