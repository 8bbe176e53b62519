# SPDX-License-Identifier: Apache-2.0
"""Recovery and output-error curves of one query block, measured in one pass over its keys.

Attention is split into per-page partial sums once; what a head would output with its k best pages is then a sum over
those pages, so all points of a curve cost little more than one dense pass, and no full score matrix is kept.
"""

import torch

from shplb.sparsity import PAGE_SIZE


def page_partials(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, sm_scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax numerators of causal attention, summed per page.

    q: float32 [num_kv_heads, group_size, num_rows, head_dim]; k, v: float32 [num_kv_heads, num_tokens, head_dim];
    rows: absolute positions [num_rows]. Returns mass [num_kv_heads, group_size, num_rows, num_pages], normalised to
    sum 1 over pages, and partial outputs with a last axis head_dim, in the same normalisation.
    """
    pages = -(-k.shape[1] // PAGE_SIZE)
    pad = pages * PAGE_SIZE - k.shape[1]
    keys = torch.nn.functional.pad(k, (0, 0, 0, pad))
    values = torch.nn.functional.pad(v, (0, 0, 0, pad))
    logits = torch.einsum("hgrd,htd->hgrt", q, keys) * sm_scale
    future = torch.arange(pages * PAGE_SIZE, device=q.device)[None, :] > rows[:, None]
    weights = torch.softmax(logits.masked_fill_(future, float("-inf")), dim=-1)
    weights = weights.view(*q.shape[:3], pages, PAGE_SIZE)
    partial = torch.einsum("hgrpt,hptd->hgrpd", weights, values.view(k.shape[0], pages, PAGE_SIZE, -1))
    return weights.sum(dim=-1), partial


def block_curves(
    mass: torch.Tensor, partial: torch.Tensor, order: torch.Tensor, counts: list[int], gram: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Curves of one block: sums over its rows of recovery and of output error, when the first pages of ``order`` stay.

    mass, partial: from :func:`page_partials`, heads flattened: [num_heads, num_rows, num_pages(, head_dim)];
    order: int64 [num_heads, num_pages]; counts: pages kept at each point; gram: [num_heads, head_dim, head_dim],
    ``W^T W`` of the head's slice of o_proj. Returns (recovery, error), each float64 [num_heads, num_points].
    """
    member = _members(order, counts, mass)
    recovered = torch.einsum("hrp,hkp->hrk", mass, member)
    kept = torch.einsum("hrpd,hkp->hrkd", partial, member) / recovered.clamp_min(1e-30)[..., None]
    delta = kept - partial.sum(dim=2)[:, :, None, :]
    error = torch.einsum("hrkd,hde,hrke->hk", delta, gram, delta).clamp_min(0.0)
    return recovered.double().sum(dim=1), error.double()


def output_gram(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """``W^T W`` of every head's slice of an o_proj weight [hidden_size, num_heads * head_dim].

    The squared norm of ``delta @ W^T`` is then ``delta^T (W^T W) delta``, without the hidden size in it.
    Returns float32 [num_heads, head_dim, head_dim].
    """
    heads = weight.detach().float().view(weight.shape[0], -1, head_dim)
    return torch.einsum("ohd,ohe->hde", heads, heads)


def block_sensitivity(
    mass: torch.Tensor, partial: torch.Tensor, order: torch.Tensor, counts: list[int], gradient: torch.Tensor
) -> torch.Tensor:
    """Sum over rows of ``(gradient . delta)^2``, delta the head's output with the first pages of ``order`` minus dense.

    Arguments as for :func:`block_curves`; gradient: float32 [num_heads, num_rows, head_dim], of a loss with respect to
    the head's output. Only the slope of every page is needed, so the head dimension is gone before points come in.
    Returns float64 [num_heads, num_points].
    """
    member = _members(order, counts, mass)
    slopes = torch.einsum("hrpd,hrd->hrp", partial, gradient)
    recovered = torch.einsum("hrp,hkp->hrk", mass, member).clamp_min(1e-30)
    change = torch.einsum("hrp,hkp->hrk", slopes, member) / recovered - slopes.sum(dim=2)[..., None]
    return change.double().pow(2).sum(dim=1)


def _members(order: torch.Tensor, counts: list[int], mass: torch.Tensor) -> torch.Tensor:
    """[num_heads, num_points, num_pages] in mass's type: 1 for the first ``counts`` pages of ``order``, else 0."""
    rank = torch.argsort(order, dim=-1)
    limits = torch.tensor(counts, device=mass.device)
    return (rank[:, None, :] < limits[None, :, None]).to(mass.dtype)
