# SPDX-License-Identifier: Apache-2.0
"""What a plan looks like in a terminal."""

import numpy as np
from rich.console import Console
from rich.text import Text

from shplb.chunk_advice import advise_chunk
from shplb.crossover import LONGEST, crossover_tokens
from shplb.device import H200, Device
from shplb.kv_cost import KvCost
from shplb.plan import ServingPlan, expand_groups
from shplb.prediction import PromptPrediction, predict_prompt
from shplb.replica_price import price_of
from shplb.show_prediction import print_prediction
from shplb.step_memory import memory_text

_SHADES = " ░▒▓█"
_MAP_COLUMNS = 78  # of 100, beside the layer's number and mean


def print_plan(
    plan: ServingPlan, console: Console, prediction: PromptPrediction | None = None, device: Device = H200
) -> None:
    """Budgets in short, predicted attention time and rank loads before and after placement, crossover, memory.

    ``prediction`` is for a prompt of the longest profiled length on ``device`` unless given.
    """
    model = plan.model
    real = _real_heads(plan)
    longest = plan.budgets[:, real, -1]
    console.print(
        f"{model.architecture}: {model.num_layers} layers, {model.num_qo_heads} query / {model.num_kv_heads} KV heads"
        + (f" ({len(model.inert_kv_heads)} of them padding)" if model.inert_kv_heads else "")
    )
    how = f"{plan.objective}, per {plan.scope}" + (", balance-aware" if plan.balance_aware else "")
    console.print(
        f"budgets ({how}) at {plan.lengths[-1]} tokens: mean {longest.mean():.3f} of the "
        f"pages, least {longest.min():.3f}, most {longest.max():.3f}"
    )
    prediction = predict_prompt(plan, device=device) if prediction is None else prediction
    print_prediction(plan, prediction, console, device)
    sentences = (
        crossover_text(crossover_tokens(plan, device)),
        kv_text(KvCost.of(plan)),
        memory_text(plan, prediction.tokens),
        reach_text(plan),
    )
    for line in sentences:
        console.print(line, highlight=False)
    advice = advise_chunk(plan, prediction, device)
    if advice is not None:
        console.print(advice.text, highlight=False)
    if plan.replicas:
        console.print(price_of(plan).text, highlight=False)
        if prediction.replicas_save_ms is not None:
            console.print(net_text(prediction, prediction.replicas_save_ms), highlight=False)


def net_text(prediction: PromptPrediction, saved_ms: float) -> str:
    """Whether replicas are predicted to pay for a prompt; saved_ms: of attention and projections together."""
    p = prediction
    end = "faster" if saved_ms > 0 else "slower, so leave --replicas out"
    return (
        f"replicas change the attention of a prompt of {p.tokens} tokens by {p.placed_ms - p.whole_ms:+.1f} ms and its "
        f"projections by {p.projections_ms:+.1f} ms: {abs(saved_ms):.1f} ms {end}"
    )


def crossover_text(tokens: int | None) -> str:
    if tokens is None:
        return f"sparse is not predicted to pay at any length up to {LONGEST} tokens; prompts are served dense"
    return f"sparse is predicted to pay from prompts of {tokens} tokens on; shorter ones are served dense"


def kv_text(cost: KvCost) -> str:
    """KV cache of the plan's layout, and what padding and replicas add to it."""
    added = {"padding": cost.padding_bytes, "replicas": cost.replica_bytes}
    parts = [f"{size / 1024:g} KiB {what}" for what, size in added.items() if size]
    beside = f", of it {' and '.join(parts)}" if parts else ", none of it padding or replicas"
    return f"KV cache: {cost.bytes_per_token_rank / 1024:g} KiB per token and rank{beside}"


def reach_text(plan: ServingPlan) -> str:
    """What budgets beyond the profiled lengths are."""
    return (
        f"profiled at {plan.lengths[0]} to {plan.lengths[-1]} tokens; above, budgets are extrapolated: the same "
        "shares, which is conservative, since needed shares shrink with length"
    )


def print_head_map(plan: ServingPlan, console: Console) -> None:
    """One line per layer, one cell per query head, darker where the head keeps more pages; "|" between ranks."""
    console.print("share of pages kept per head, heads as placed on ranks ('|' between ranks, '-' is padding):")
    count = plan.num_slots * plan.model.group_size
    order = expand_groups(plan.physical_to_logical, plan.model.group_size)
    inert = plan.model.inert_qo_heads
    # Two signs and a space for a head where a layer fits a line of 100 columns, else one sign.
    wide = 3 * len(order[0]) + 2 * plan.tp_size <= _MAP_COLUMNS
    for layer, heads in enumerate(order.tolist()):
        line = Text(f"layer {layer:3d}  ")
        for index, head in enumerate(heads):
            if index and index % count == 0:
                line.append("| " if wide else "|", style="dim")
            share = float(plan.budgets[layer, head, -1])
            cell = "-" if head in inert else _shade(share)
            line.append(f"{cell * 2} " if wide else cell, style=None if head in inert else _color(share))
        line.append(f" mean {plan.budgets[layer, _real_heads(plan), -1].mean():.2f}")
        console.print(line)
    legend = Text("least ")
    for share in (0.02, 0.1, 0.2, 0.4, 0.8):
        legend.append(f"{_shade(share) * 2} {share:g}  ", style=_color(share))
    console.print(legend)


def _real_heads(plan: ServingPlan) -> list[int]:
    return [head for head in range(plan.model.num_qo_heads) if head not in plan.model.inert_qo_heads]


def _level(share: float) -> int:
    return int(np.searchsorted([0.05, 0.15, 0.3, 0.6], share))


def _shade(share: float) -> str:
    return _SHADES[_level(share)] if _level(share) else "·"


def _color(share: float) -> str:
    return ("grey42", "blue", "cyan", "yellow", "red")[_level(share)]
