# SPDX-License-Identifier: Apache-2.0
"""Page scores in torch, by their definitions: an estimate of the attention mass on every page.

All scores have one form. Queries and keys become fewer vectors; the softmax over the keys' vectors, averaged over the
vectors of a query block, is summed per page. What differs is the vectors:

* ``mean_pool``: means over ``score_stride`` tokens (block estimation as in MInference, arXiv 2407.02490, and
  FlexPrefill, arXiv 2502.20766);
* ``antidiagonal``: ``score_stride`` tokens side by side, queries in reverse, so that the product sums an antidiagonal
  of the attention matrix (XAttention, arXiv 2503.16428);
* ``min_max``: pooled queries against the extremes of every page, an upper bound on its logits (Quest, arXiv
  2406.10774);
* ``oracle``: queries and keys themselves, so that the result is the mass. As expensive as dense attention.

Positions are absolute token positions in the request, so a query block sees the same scores whatever the batch.
"""

import torch

from shplb.sparsity import PAGE_SIZE, SparsityRule, num_pages


def pool_tokens(x: torch.Tensor, first: int, stride: int) -> torch.Tensor:
    """Mean over runs of ``stride`` tokens cut at absolute multiples of ``stride``; runs at the ends may be shorter.

    x: [num_tokens, num_heads, head_dim], token 0 at absolute position ``first``.
    Returns float32 [num_heads, num_runs, head_dim].
    """
    runs = _runs(x.float(), first, stride)
    sizes = torch.full((len(runs),), float(stride), device=x.device)
    sizes[0] -= first % stride
    sizes[-1] -= -(first + x.shape[0]) % stride
    # Sums of padded runs, since adding by index is in no fixed order on a GPU.
    return (runs.sum(dim=1) / sizes[:, None, None]).transpose(0, 1)


def key_tokens(rule: SparsityRule) -> int:
    """Tokens that one key vector stands for."""
    return {"min_max": PAGE_SIZE, "oracle": 1}.get(rule.score, rule.score_stride)


def row_tokens(rule: SparsityRule) -> int:
    """Tokens that one query vector stands for."""
    return 1 if rule.score == "oracle" else rule.score_stride


def key_vectors(k: torch.Tensor, rule: SparsityRule) -> torch.Tensor:
    """[num_kv_heads, num_keys, dim] of a request's keys [num_tokens, num_kv_heads, head_dim] from token 0 on.

    float32, or k's type where its numbers are only moved (``antidiagonal``, ``oracle``).
    """
    match rule.score:
        case "antidiagonal":
            return _side_by_side(k, 0, rule.score_stride)
        case "min_max":
            least = _runs(k.float(), 0, PAGE_SIZE, float("inf")).amin(dim=1)
            most = _runs(k.float(), 0, PAGE_SIZE, float("-inf")).amax(dim=1)
            return torch.cat([most, least], dim=-1).transpose(0, 1)
        case "oracle":
            return k.transpose(0, 1)
    return pool_tokens(k, 0, rule.score_stride)


def query_vectors(q: torch.Tensor, first_row: int, rule: SparsityRule) -> torch.Tensor:
    """[num_qo_heads, num_rows, dim] of queries [num_tokens, num_qo_heads, head_dim], the first at ``first_row``.

    Vector i stands for tokens from (first_row // row_tokens + i) * row_tokens on.
    """
    match rule.score:
        case "antidiagonal":
            return _side_by_side(q, first_row, rule.score_stride, reverse=True)
        case "min_max":
            pooled = pool_tokens(q, first_row, rule.score_stride)
            # q . max where q is positive, q . min where it is negative: no key of the page has a larger product.
            return torch.cat([pooled.clamp_min(0.0), pooled.clamp_max(0.0)], dim=-1)
        case "oracle":
            return q.transpose(0, 1)
    return pool_tokens(q, first_row, rule.score_stride)


def logit_scale(sm_scale: float, rule: SparsityRule) -> float:
    """What products of the vectors are multiplied by: an antidiagonal is averaged."""
    return sm_scale / rule.score_stride if rule.score == "antidiagonal" else sm_scale


def page_scores(
    q: torch.Tensor, keys: torch.Tensor, first_row: int, sm_scale: float, rule: SparsityRule
) -> torch.Tensor:
    """Estimated share of attention mass per page for one query block piece.

    q: [num_rows, num_qo_heads, head_dim], row 0 at absolute position ``first_row``; keys: from :func:`key_vectors`.
    Returns float32 [num_qo_heads, num_visible_pages].
    """
    end_row = first_row + q.shape[0]
    visible, unit = num_pages(end_row), key_tokens(rule)
    keys = keys[:, : -(-end_row // unit)].float()
    rows = query_vectors(q, first_row, rule).float()
    heads, num_kv_heads = rows.shape[0], keys.shape[0]
    grouped = rows.reshape(num_kv_heads, -1, rows.shape[-1])  # [num_kv_heads, group * num_rows, dim]
    logits = torch.bmm(grouped, keys.transpose(1, 2)).view(heads, -1, keys.shape[1]) * logit_scale(sm_scale, rule)
    stride = row_tokens(rule)
    position = (torch.arange(rows.shape[1], device=q.device) + first_row // stride) * stride
    future = torch.arange(keys.shape[1], device=q.device)[None, :] * unit > position[:, None]
    mass = torch.softmax(logits.masked_fill(future, float("-inf")), dim=-1).mean(dim=1)
    per_page = PAGE_SIZE // unit
    padded = torch.nn.functional.pad(mass, (0, visible * per_page - mass.shape[1]))
    return padded.view(heads, visible, per_page).sum(dim=-1)


def _runs(x: torch.Tensor, first: int, stride: int, fill: float = 0.0) -> torch.Tensor:
    """[num_runs, stride, num_heads, head_dim]: runs at absolute multiples of ``stride``, ``fill`` where no token is."""
    before, after = first % stride, -(first + x.shape[0]) % stride
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, before, after), value=fill)
    return padded.view(-1, stride, *x.shape[1:])


def _side_by_side(x: torch.Tensor, first: int, stride: int, *, reverse: bool = False) -> torch.Tensor:
    """[num_heads, num_runs, stride * head_dim]: the tokens of every run in a row, zeros where no token is."""
    runs = _runs(x, first, stride)
    if reverse:
        runs = runs.flip(1)
    return runs.permute(2, 0, 1, 3).flatten(2)
