# SPDX-License-Identifier: Apache-2.0
"""Predicted attention time and rank loads of a plan as a table: contiguous, placed, lower bound."""

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from shplb.device import H200, Device
from shplb.plan import ServingPlan
from shplb.planning import count_bound
from shplb.prediction import CHUNK_TOKENS, PromptPrediction
from shplb.rank_loads import RankLoads, imbalance

#: More ranks than this are shown by their least and most loaded one.
_MOST_COLUMNS = 8


def print_prediction(plan: ServingPlan, prediction: PromptPrediction, console: Console, device: Device = H200) -> None:
    """One row per way to place heads; what the numbers stand for below."""
    p, loads = prediction, RankLoads.of(plan)
    beyond = ", longer than any profiled: budgets are extrapolated" if p.extrapolated else ""
    console.print(f"predicted attention of a prompt of {p.tokens} tokens{beyond}:", highlight=False)
    table = _empty_table(plan.tp_size)
    table.add_row("dense", f"{p.dense_ms:.3f}")
    if plan.tp_size == 1:
        table.add_row("this plan", f"{p.placed_ms:.3f}")
    else:
        times = {"contiguous": p.contiguous_ms, "placed": p.whole_ms, "replicas": p.placed_ms}
        for name, ranks in loads.rows:
            table.add_row(name, f"{times[name]:.3f}", *_shares(ranks), f"{imbalance(ranks):.3f}")
        blanks = [""] * len(_shares(loads.placed))
        table.add_row("lower bound", f"{p.bound_ms:.3f}", *blanks, f"{loads.bound_imbalance:.3f}")
    console.print(table)
    console.print(f"time: all layers, slowest rank of each, chunks of {CHUNK_TOKENS}; {device.origin}", highlight=False)
    if plan.tp_size > 1:
        console.print("ranks: pages kept in all layers, over the mean; max/mean: layer by layer", highlight=False)
    if p.sparse_chunks < p.chunks:
        console.print(
            f"{p.chunks - p.sparse_chunks} of {p.chunks} chunks are predicted to be faster dense and stay so",
            highlight=False,
        )
    real = plan.model.num_kv_heads - len(plan.model.inert_kv_heads)
    if plan.tp_size > 1 and real < plan.model.num_kv_heads:
        bound = count_bound(plan.model.num_kv_heads, plan.model.num_kv_heads - real, plan.tp_size)
        console.print(
            f"with equal loads, {real} groups on {plan.tp_size} ranks could not be better than {bound:.2f}",
            highlight=False,
        )


def _empty_table(tp_size: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("heads", no_wrap=True)
    table.add_column("attention\nms", justify="right", no_wrap=True)
    if tp_size > 1:
        few = tp_size <= _MOST_COLUMNS
        for name in [f"rank\n{rank}" for rank in range(tp_size)] if few else ["least\nrank", "most\nrank"]:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("max/mean\nof a layer", justify="right", no_wrap=True)
    return table


def _shares(loads: np.ndarray) -> list[str]:
    """Loads [num_layers, tp_size] summed over layers, over their mean; the extremes where ranks are many."""
    sums = loads.sum(axis=0)
    shares = sums / max(sums.mean(), 1.0)
    if len(shares) > _MOST_COLUMNS:
        shares = np.array([shares.min(), shares.max()])
    return [f"{share:.2f}" for share in shares.tolist()]
