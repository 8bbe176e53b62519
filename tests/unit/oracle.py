# SPDX-License-Identifier: Apache-2.0
"""Dense-with-mask attention and page selection written from their definitions, sharing no code with the package."""

import math

import torch

PAGE = 64


def pages_by_definition(
    q: torch.Tensor, k: torch.Tensor, first_row: int, keep: int, *, stride: int, sink: int, local: int, scale: float
) -> list[int]:
    """Pages one head keeps for rows first_row.. of ``q`` [rows, dim], keys ``k`` [tokens, dim]; plain loops."""
    end_row = first_row + len(q)
    visible = math.ceil(end_row / PAGE)

    def mean(x: torch.Tensor, offset: int, run: int) -> torch.Tensor:
        low, high = max(run * stride, offset), min((run + 1) * stride, offset + len(x))
        return x[low - offset : high - offset].double().mean(dim=0)

    mass = torch.zeros(visible, dtype=torch.float64)
    q_runs = range(first_row // stride, (end_row - 1) // stride + 1)
    for q_run in q_runs:
        query = mean(q, first_row, q_run)
        k_runs = range(q_run + 1)
        logits = torch.stack([query @ mean(k, 0, run) * scale for run in k_runs])
        for run, weight in zip(k_runs, torch.softmax(logits, 0), strict=True):
            mass[run * stride // PAGE] += weight / len(q_runs)
    forced = {page for page in range(visible) if page < sink or page >= first_row // PAGE - local}
    others = sorted(
        (page for page in range(visible) if page not in forced), key=lambda page: (-mass[page].item(), page)
    )
    return sorted(forced | set(others[: max(keep - len(forced), 0)]))


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first_row: int, pages: list[int], scale: float
) -> torch.Tensor:
    """softmax(q k^T + mask) v of one head in float64; keys outside ``pages`` or in the future are masked out."""
    tokens = torch.arange(len(k))
    rows = torch.arange(first_row, first_row + len(q))
    allowed = torch.isin(tokens // PAGE, torch.tensor(pages))[None] & (tokens[None] <= rows[:, None])
    logits = (q.double() @ k.double().T * scale).masked_fill(~allowed, float("-inf"))
    return torch.softmax(logits, dim=-1) @ v.double()
