# SPDX-License-Identifier: Apache-2.0
"""What a plan looks like in a terminal."""

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shplb.plan import ServingPlan, expand_groups
from shplb.planning import count_bound

_SHADES = " ░▒▓█"


def print_plan(plan: ServingPlan, console: Console) -> None:
    """Budgets in short, and predicted rank loads before and after placement."""
    model = plan.model
    real = _real_heads(plan)
    longest = plan.budgets[:, real, -1]
    console.print(
        f"{model.architecture}: {model.num_layers} layers, {model.num_qo_heads} query / {model.num_kv_heads} KV heads"
        + (f" ({len(model.inert_kv_heads)} of them padding)" if model.inert_kv_heads else "")
    )
    console.print(
        f"budgets ({plan.objective}, per {plan.scope}) at {plan.lengths[-1]} tokens: mean {longest.mean():.3f} of the "
        f"pages, least {longest.min():.3f}, most {longest.max():.3f}"
    )
    if plan.tp_size > 1:
        print_loads(plan.rank_loads(plan.loads, contiguous=True), plan.rank_loads(plan.loads), console)
        bound = count_bound(model.num_kv_heads, len(model.inert_kv_heads), plan.tp_size)
        console.print(
            f"with equal loads, {model.num_kv_heads - len(model.inert_kv_heads)} groups on {plan.tp_size} ranks "
            f"could not be better than {bound:.2f}",
            highlight=False,
        )


def print_loads(before: np.ndarray, after: np.ndarray, console: Console) -> None:
    """Rank loads [num_layers, tp_size] of stock's contiguous sharding and of the placement, in shares of the mean."""
    ranks = (f"rank {rank}" for rank in range(before.shape[1]))
    table = Table("heads", *ranks, "max/mean per layer", title="attention load, all layers")
    for name, loads in (("contiguous", before), ("placed", after)):
        shares = loads.sum(axis=0) / max(loads.sum() / loads.shape[1], 1)
        table.add_row(name, *(f"{share:.2f}" for share in shares), f"{imbalance(loads):.3f}")
    console.print(table)


def imbalance(loads: np.ndarray) -> float:
    """Time lost to waiting: ranks meet after every layer, so sum of layer maxima over sum of layer means."""
    means = loads.mean(axis=1).sum()
    return float(loads.max(axis=1).sum() / means) if means else 1.0


def print_head_map(plan: ServingPlan, console: Console) -> None:
    """One line per layer, one cell per query head, darker where the head keeps more pages; "|" between ranks."""
    console.print("share of pages kept per head, heads as placed on ranks ('|' between ranks, '-' is padding):")
    count = plan.model.num_qo_heads // plan.tp_size
    order = expand_groups(plan.physical_to_logical, plan.model.group_size)
    inert = plan.model.inert_qo_heads
    for layer, heads in enumerate(order.tolist()):
        line = Text(f"layer {layer:3d}  ")
        for index, head in enumerate(heads):
            if index and index % count == 0:
                line.append("| ", style="dim")
            share = float(plan.budgets[layer, head, -1])
            line.append("-- " if head in inert else f"{_shade(share) * 2} ", style=_color(share))
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
