# SPDX-License-Identifier: Apache-2.0
"""Sparse prefill attention in plain torch: the path without an sm90 GPU, and the reference for the one with it."""

import torch

from shplb.sparsity import PAGE_SIZE


def page_tokens(pages: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Token positions of ascending pages, those at or above ``num_tokens`` left out: int64 [num_kept_tokens]."""
    tokens = (pages[:, None] * PAGE_SIZE + torch.arange(PAGE_SIZE, device=pages.device)).reshape(-1)
    return tokens[tokens < num_tokens]


def attend_pages(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pages: torch.Tensor, first_row: int, sm_scale: float
) -> torch.Tensor:
    """Causal attention of one head's query rows over its kept pages.

    q: [num_rows, head_dim], row 0 at absolute position ``first_row``; k, v: [num_tokens, head_dim] of its KV head;
    pages: ascending int64, must contain every page from the first row's to the last row's (the causal mask is
    applied there only). Returns [num_rows, head_dim] in q's dtype.
    """
    end_row = first_row + q.shape[0]
    tokens = page_tokens(pages, end_row)
    rows = torch.arange(first_row, end_row, device=q.device)
    mask = tokens[None, :] <= rows[:, None]
    keys, values = k[tokens].to(q.dtype), v[tokens].to(q.dtype)
    out = torch.nn.functional.scaled_dot_product_attention(
        q[None, None], keys[None, None], values[None, None], attn_mask=mask, scale=sm_scale
    )
    return out[0, 0]
