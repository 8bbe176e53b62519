# SPDX-License-Identifier: Apache-2.0
"""``shplb show``: a plan in a terminal."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shplb.commands.rates import device_for

if TYPE_CHECKING:
    from shplb.device import Device
    from shplb.plan import ServingPlan


def show(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="File made by `shplb plan`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show a plan: budgets as a map of heads, rank loads before and after placement.

    Example: shplb show m.tp2.plan.safetensors
    """
    from shplb.plan import ServingPlan
    from shplb.show import print_head_map, print_plan

    loaded = ServingPlan.load(path)
    device = device_for(loaded.model)
    if as_json:
        typer.echo(json.dumps(describe(loaded, device), indent=1))
        return
    output = Console()
    print_plan(loaded, output, device=device)
    print_head_map(loaded, output)


def describe(plan: "ServingPlan", device: "Device") -> dict[str, Any]:
    """All facts and arrays of the file, and what the table adds to them."""
    import dataclasses

    import msgspec

    from shplb.crossover import crossover_tokens
    from shplb.kv_cost import KvCost
    from shplb.plan import ARRAYS, OPTIONAL_ARRAYS
    from shplb.prediction import predict_prompt
    from shplb.rank_loads import RankLoads, imbalance

    loads = RankLoads.of(plan)
    arrays = (*ARRAYS, *OPTIONAL_ARRAYS)
    facts = {name: getattr(plan, name) for name in plan.__struct_fields__ if name not in arrays}
    return {
        "plan_hash": plan.hash,
        **msgspec.to_builtins(facts),
        **{name: getattr(plan, name).tolist() for name in arrays},
        "prediction": dataclasses.asdict(predict_prompt(plan, device=device)),
        "rates": device.origin,
        "crossover_tokens": crossover_tokens(plan, device),
        "kv_cost": dataclasses.asdict(KvCost.of(plan)),
        "rank_loads": {"contiguous": loads.contiguous.tolist(), "placed": loads.placed.tolist()},
        "imbalance": {
            "contiguous": imbalance(loads.contiguous),
            "placed": imbalance(loads.placed),
            "lower_bound": loads.bound_imbalance,
        },
    }
