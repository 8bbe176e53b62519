# SPDX-License-Identifier: Apache-2.0
"""A longer context by training attention weights and norms alone, everything else frozen.

RoPE's base is raised, so that the angles of far positions are ones that the model has seen (as in Code Llama, arXiv
2308.12950), and the projections of attention adapt to it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch.utils.checkpoint import checkpoint

from long_model.sequences import IGNORED, Labelled

_LOGIT_ROWS = 4096  # at a time; all at once would be 6 GB a sequence of 32768 tokens
_WARM_UP = 0.05
_BETAS, _CLIP = (0.9, 0.95), 1.0


class Schedule(msgspec.Struct, frozen=True):
    """steps: optimiser steps of ``tokens_per_step`` tokens. learning_rate: the largest, after a warm-up of 5 %."""

    steps: int
    tokens_per_step: int
    learning_rate: float

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to zero."""
        warm_up = max(1, round(_WARM_UP * self.steps))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))


def trained_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Attention projections and norms; the rest is frozen on return."""
    found = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" in name or "norm" in name)
        if parameter.requires_grad:
            found[name] = parameter
    return found


def mean_loss(model: Any, token_ids: list[int], labels: list[int], device: str) -> torch.Tensor:
    """Mean cross-entropy over the labelled tokens, logits a few thousand rows at a time."""
    target = torch.tensor(labels[1:], device=device)
    with torch.autocast(device, torch.bfloat16):
        hidden = model.model(torch.tensor([token_ids], device=device)).last_hidden_state[0, :-1]
    kept = target != IGNORED
    hidden, target = hidden[kept], target[kept]

    def rows(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = model.lm_head(hidden)
        return torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum")

    pairs = zip(hidden.split(_LOGIT_ROWS), target.split(_LOGIT_ROWS), strict=True)
    return torch.stack([checkpoint(rows, *pair, use_reentrant=False) for pair in pairs]).sum() / len(target)


def train(
    model: Any, sequences: Iterator[Labelled], schedule: Schedule, device: str, on_step: Callable[[int, float], None]
) -> None:
    """Change ``model`` in place; ``on_step`` hears of every step and its mean loss per sequence.

    Every sequence has the same weight, so that the few answer tokens of a task weigh as much as a whole text.
    """
    parameters = list(trained_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=_BETAS, weight_decay=0.0)
    model.train()
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(step)
        total, count, tokens = 0.0, 0, 0
        while tokens < schedule.tokens_per_step:
            each = next(sequences)
            loss = mean_loss(model, each.token_ids, each.labels, device)
            loss.backward()
            total, count, tokens = total + float(loss.detach()), count + 1, tokens + len(each.token_ids)
        for parameter in parameters:
            parameter.grad /= count
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, total / count)
    model.eval()


def text_nll(model: Any, documents: list[list[int]], device: str) -> float:
    """Mean NLL per token, in nats, of whole documents."""
    with torch.no_grad():
        return sum(float(mean_loss(model, each, each, device)) for each in documents) / len(documents)
