# SPDX-License-Identifier: Apache-2.0
"""Which code scores the pages of a step on a GPU: one function for every score and choice of the rule.

A score takes (the prefill, the step, q, the key pool, sm_scale) and returns float32 ``[num_qo_heads, num_blocks,
max_pages]``, undefined where a block sees no page.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from shplb.kernels.lines import Lines
from shplb.kernels.slab_mass import slab_mass
from shplb.sparsity import SparsityRule

if TYPE_CHECKING:
    from shplb.kernels.paged_prefill import PagedPrefill
    from shplb.kernels.paged_step import PagedStep

PagedScore = Callable[["PagedPrefill", "PagedStep", torch.Tensor, torch.Tensor, float, int], torch.Tensor]


def score_of(rule: SparsityRule) -> PagedScore:
    """The score of a rule: a choice may need one of its own, or none."""
    if rule.choice == "vertical_slash":
        return line_scores
    if rule.choice == "a_shape":
        return no_scores
    return pooled_scores if rule.score == "mean_pool" else slab_scores


def pooled_scores(
    prefill: "PagedPrefill", step: "PagedStep", q: torch.Tensor, k_pool: torch.Tensor, sm_scale: float, layer: int
) -> torch.Tensor:
    """The default: three kernels for all requests at once."""
    return prefill.page_mass(step, prefill.pool_queries(step, q), prefill.pool_keys(step, k_pool), sm_scale, layer)


def slab_scores(
    prefill: "PagedPrefill", step: "PagedStep", q: torch.Tensor, k_pool: torch.Tensor, sm_scale: float, layer: int
) -> torch.Tensor:
    """Any score, request by request."""
    out = _empty(step, q)
    for request in step.requests():
        rows = q[request.first_q_row : request.first_q_row + request.new]
        keys = k_pool[step.slots(request.index, request.prefix + request.new)]
        slab_mass(rows, keys, request.prefix, sm_scale, prefill.rule, out, request.first_block)
    return out


def line_scores(
    prefill: "PagedPrefill", step: "PagedStep", q: torch.Tensor, k_pool: torch.Tensor, sm_scale: float, layer: int
) -> torch.Tensor:
    """Vertical and slash lines, request by request."""
    out, size = _empty(step, q), prefill.rule.query_block
    for request in step.requests():
        rows = q[request.first_q_row : request.first_q_row + request.new]
        lines = Lines(rows, k_pool[step.slots(request.index, request.prefix + request.new)], sm_scale)
        count, end = request.num_blocks, request.prefix + request.new
        block = torch.arange(count, device=q.device) + request.prefix // size
        bounds = (block * size).clamp(min=request.prefix), ((block + 1) * size).clamp(max=end)
        scores = lines.page_scores(*bounds, size)
        out[:, request.first_block : request.first_block + count, : scores.shape[2]] = scores
    return out


def no_scores(
    prefill: "PagedPrefill", step: "PagedStep", q: torch.Tensor, k_pool: torch.Tensor, sm_scale: float, layer: int
) -> torch.Tensor:
    """Zeros without memory, for choices that look at positions only."""
    return torch.zeros((), device=q.device).expand(q.shape[1], step.plan.num_blocks, step.max_pages)


def _empty(step: "PagedStep", q: torch.Tensor) -> torch.Tensor:
    shape = q.shape[1], step.plan.num_blocks, step.max_pages
    return torch.empty(shape, dtype=torch.float32, device=q.device)
