# SPDX-License-Identifier: Apache-2.0
"""A few query rows of a sparse step recomputed dense: what the kept pages miss, and what that changes."""

import torch

from shplb.kernels.curves import page_partials
from shplb.sparsity import PAGE_SIZE


def kept_pages(
    lists: torch.Tensor, list_indptr: torch.Tensor, block: int, num_blocks: int, request_pages: torch.Tensor,
    pool_pages: int,
) -> torch.Tensor:  # fmt: skip
    """bool [num_list_heads, num_visible_pages]: which pages of a request are on a block's lists; waits for nothing.

    lists: int32, pages of the pool; list_indptr: int32 [num_list_heads * num_blocks + 1]; request_pages: int64
    [num_visible_pages], the pool's page of each of the request's; pool_pages: how many the pool has.
    """
    device, visible = lists.device, len(request_pages)
    place = torch.full((pool_pages,), visible, device=device)
    place[request_pages] = torch.arange(visible, device=device)
    at = torch.arange(block, len(list_indptr) - 1, num_blocks, device=device)
    start, count = list_indptr[at, None].long(), (list_indptr[at + 1] - list_indptr[at])[:, None]
    index = torch.arange(visible, device=device)[None]
    entries = lists[(start + index).clamp(max=len(lists) - 1)].long().clamp(0, pool_pages - 1)
    kept = torch.zeros((len(at), visible + 1), dtype=torch.bool, device=device)
    # Entries beyond a list's end go to the last column, which is cut off.
    kept.scatter_(1, torch.where(index < count, place[entries], visible), True)
    return kept[:, :visible]


def shadow_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, rows: torch.Tensor, kept: torch.Tensor,
    sm_scale: float,
) -> torch.Tensor:  # fmt: skip
    """float32 [num_qo_heads, 4] of one block: recovered mass, mean over rows; squared error of the output and squared
    norm of the dense output, sums over rows; 1 if the head keeps any page here, else 0.

    q, out: [num_rows, num_qo_heads, head_dim], queries and sparse output at absolute positions ``rows``, int64; k, v:
    [num_tokens, num_kv_heads, head_dim] up to the block's end; kept: bool [num_list_heads, num_pages]. One KV head
    after the other, so that memory follows rows times tokens of one group.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    kept = kept.repeat_interleave(heads // len(kept), dim=0)
    found = torch.empty((heads, 4), dtype=torch.float32, device=q.device)
    for group in range(kv_heads):
        own = slice(group * heads // kv_heads, (group + 1) * heads // kv_heads)
        queries = q[:, own].transpose(0, 1)[None].float()
        mass, partial = page_partials(queries, k[None, :, group].float(), v[None, :, group].float(), rows, sm_scale)
        dense = partial[0].sum(dim=2)
        found[own, 0] = (mass[0] * kept[own, None]).sum(dim=2).mean(dim=1)
        found[own, 1] = (out[:, own].transpose(0, 1).float() - dense).square().sum(dim=(1, 2))
        found[own, 2] = dense.square().sum(dim=(1, 2))
    found[:, 3] = kept.any(dim=1)
    return found


def pages_of_tokens(slots: torch.Tensor) -> torch.Tensor:
    """int64 [num_pages]: the pool's page of each page of a request, from the pool slots of its tokens."""
    return slots[::PAGE_SIZE] // PAGE_SIZE
