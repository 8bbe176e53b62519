# SPDX-License-Identifier: Apache-2.0
"""What a plan looks like in a terminal."""

import numpy as np
from rich.console import Console
from rich.text import Text

from shplb.plan import ServingPlan, expand_groups
from shplb.prediction import PromptPrediction, predict_prompt
from shplb.show_prediction import print_prediction

_SHADES = " ░▒▓█"
_MAP_COLUMNS = 78  # of 100, beside the layer's number and mean


def print_plan(plan: ServingPlan, console: Console, prediction: PromptPrediction | None = None) -> None:
    """Budgets in short, and predicted attention time and rank loads before and after placement.

    ``prediction`` is for a prompt of the longest profiled length unless given.
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
        f"pages, least {longest.min():.3f}, most {longest.max():.3f}; the same shares beyond, which is conservative: "
        "needed shares shrink with length"
    )
    print_prediction(plan, predict_prompt(plan) if prediction is None else prediction, console)


def print_head_map(plan: ServingPlan, console: Console) -> None:
    """One line per layer, one cell per query head, darker where the head keeps more pages; "|" between ranks."""
    console.print("share of pages kept per head, heads as placed on ranks ('|' between ranks, '-' is padding):")
    count = plan.model.num_qo_heads // plan.tp_size
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
