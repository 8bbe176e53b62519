# SPDX-License-Identifier: Apache-2.0
"""Page selection in torch: estimated attention mass of every page, then an exact top-k with forced pages.

Positions are absolute token positions in the request, so a query block sees the same scores whatever the batch.
"""

import torch

from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages


def pool_tokens(x: torch.Tensor, first: int, stride: int) -> torch.Tensor:
    """Mean over runs of ``stride`` tokens cut at absolute multiples of ``stride``; runs at the ends may be shorter.

    x: [num_tokens, num_heads, head_dim], token 0 at absolute position ``first``.
    Returns float32 [num_heads, num_runs, head_dim].
    """
    before, end = first % stride, first + x.shape[0]
    after = -end % stride
    # Sums of padded runs, since adding by index is in no fixed order on a GPU.
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, before, after))
    sums = padded.view(-1, stride, *x.shape[1:]).sum(dim=1)
    sizes = torch.full((len(sums),), float(stride), device=x.device)
    sizes[0] -= before
    sizes[-1] -= after
    return (sums / sizes[:, None, None]).transpose(0, 1)


def page_scores(
    q: torch.Tensor, pooled_keys: torch.Tensor, first_row: int, sm_scale: float, rule: SparsityRule
) -> torch.Tensor:
    """Estimated share of attention mass per page for one query block piece ("mean_pool").

    Queries and keys are averaged over runs of ``rule.score_stride`` tokens; the softmax over all visible pooled keys,
    averaged over pooled queries, estimates the mass of each page (block estimation as in MInference and XAttention).

    q: [num_rows, num_qo_heads, head_dim], row 0 at absolute position ``first_row``.
    pooled_keys: float32 [num_kv_heads, num_runs, head_dim] from :func:`pool_tokens` with first = 0.
    Returns float32 [num_qo_heads, num_visible_pages].
    """
    stride, end_row = rule.score_stride, first_row + q.shape[0]
    visible = num_pages(end_row)
    runs_per_page = PAGE_SIZE // stride
    keys = pooled_keys[:, : -(-end_row // stride)]
    pooled_q = pool_tokens(q, first_row, stride)
    heads, num_kv_heads = pooled_q.shape[0], keys.shape[0]
    grouped = pooled_q.reshape(num_kv_heads, -1, pooled_q.shape[-1])  # [num_kv_heads, group * num_q_runs, head_dim]
    logits = torch.bmm(grouped, keys.transpose(1, 2)).view(heads, -1, keys.shape[1]) * sm_scale
    q_run = torch.arange(pooled_q.shape[1], device=q.device) + first_row // stride
    future = torch.arange(keys.shape[1], device=q.device)[None, :] > q_run[:, None]
    mass = torch.softmax(logits.masked_fill(future, float("-inf")), dim=-1).mean(dim=1)
    padded = torch.nn.functional.pad(mass, (0, visible * runs_per_page - mass.shape[1]))
    return padded.view(heads, visible, runs_per_page).sum(dim=-1)


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
