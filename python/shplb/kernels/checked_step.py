# SPDX-License-Identifier: Apache-2.0
"""A trial step's page lists and output against plain torch, on a few of its blocks."""

from typing import NamedTuple

import torch

from shplb.kernels.reference import attend_pages
from shplb.kernels.scores import key_vectors, page_scores
from shplb.kernels.selection import rank_pages
from shplb.kernels.trial import TrialStep
from shplb.sparsity import num_pages


class Deviation(NamedTuple):
    """error: relative, of the output; lost_mass: share of the best lists' estimated mass that the lists miss."""

    error: float
    lost_mass: float


class CheckedStep:
    """Looks at a step that has run."""

    def __init__(self, trial: TrialStep) -> None:
        self.trial = trial
        step, pool = trial.planned, trial.pool
        plan = step.plan
        self._indptr = step.list_indptr(0).tolist()
        self._first_rows, self._lens = (
            step.blocks(offset).tolist() for offset in (plan.block_first_row_offset, plan.block_qo_len_offset)
        )
        seen: list[torch.Tensor] = []
        trial.select(lambda kept, _: seen.append(kept))
        self._pages = seen[0].long()
        slots = pool.req_to_token[0, : trial.step.prefix + trial.step.new].long()
        self._k, self._v = pool.k[slots], pool.v[slots]
        self._pooled_keys = key_vectors(self._k, trial.rule)

    def worst(self) -> Deviation:
        """Over all heads of the first, a middle and the last block; NaN if the output holds any."""
        if not torch.isfinite(self.trial.out).all():
            return Deviation(float("nan"), 0.0)
        last = self.trial.planned.plan.num_blocks - 1
        found = [self._deviation(block) for block in sorted({0, last // 2, last})]
        return Deviation(max(one.error for one in found), max(one.lost_mass for one in found))

    def _deviation(self, block: int) -> Deviation:
        trial = self.trial
        first, count = self._first_rows[block], self._lens[block]
        at = slice(first - trial.step.prefix, first - trial.step.prefix + count)
        q = trial.pool.q[at]
        scores = page_scores(q, self._pooled_keys, first, trial.sm_scale, trial.rule)
        order = rank_pages(scores, first, first + count, trial.rule)
        error = lost = 0.0
        for head in range(q.shape[1]):
            kept = self._list(block, head)
            group = head // trial.shape.group_size
            expected = attend_pages(
                q[:, head].float(), self._k[:, group].float(), self._v[:, group].float(), kept, first, trial.sm_scale
            )
            error = max(error, ((trial.out[at, head].float() - expected).norm() / expected.norm()).item())
            best = scores[head, order[head, : len(kept)]].sum()
            lost = max(lost, self._lost(kept, scores[head], best, order[head], first, count))
        return Deviation(error, lost)

    def _lost(
        self, kept: torch.Tensor, scores: torch.Tensor, best: torch.Tensor, order: torch.Tensor, first: int, count: int
    ) -> float:
        """1 for a list that is not ascending or lacks a forced page."""
        sink_end, first_local = self.trial.rule.forced_pages(first, first + count)
        forced = sink_end + num_pages(first + count) - first_local
        valid = bool((kept[1:] > kept[:-1]).all()) and bool(torch.isin(order[:forced], kept).all())
        return ((best - scores[kept].sum()) / best).item() if valid else 1.0

    def _list(self, block: int, head: int) -> torch.Tensor:
        at = head * self.trial.planned.plan.num_blocks + block
        return self._pages[self._indptr[at] : self._indptr[at + 1]]
