# SPDX-License-Identifier: Apache-2.0
"""``shplb plan``: a profile becomes budgets and a head placement, at a density or a target that implies one."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shplb.commands.messages import say
from shplb.commands.rates import device_for
from shplb.density_advice import ADVICE

if TYPE_CHECKING:
    from shplb.balance_gain import BalanceGain
    from shplb.device import Device
    from shplb.plan import ServingPlan
    from shplb.planning import PlanMaker
    from shplb.prediction import PromptPrediction

# The options, apart from the function that takes them.
Profile = Annotated[Path, typer.Argument(metavar="PROFILE", help="File made by `shplb profile`.")]
Out = Annotated[Path, typer.Option(help="Plan file to write.")]
Ranks = Annotated[int, typer.Option(help="Tensor-parallel size that will serve.")]
Density = Annotated[float | None, typer.Option(help="Mean share of attention to compute, in (0, 1].")]
Recovery = Annotated[
    float | None,
    typer.Option(help="Instead: the least density at which heads recover this share of attention on average."),
]
LatencyBudget = Annotated[
    float | None,
    typer.Option(help="Instead: the largest density at which a prompt's attention takes this many ms at most."),
]
AtTokens = Annotated[
    int | None, typer.Option(help="Length of the prompt that is predicted (default: the longest profiled).")
]
Objective = Annotated[str, typer.Option(help="min_error, max_min (the paper), max_mean or uniform.")]
Scope = Annotated[str, typer.Option(help="Share one total over the whole model, or per layer.")]
BalanceAware = Annotated[
    bool, typer.Option("--balance-aware", help="Solve budgets and placement together: budget on idle ranks is free.")
]
Rates = Annotated[
    Path | None,
    typer.Option(help="File made by `shplb calibrate` (default: the cached one, else an H200's).", show_default=False),
]
Weighing = Annotated[
    str,
    typer.Option(help="Of output errors: measured (by importance, if the profile has it), none, residual or fisher."),
]
Replicas = Annotated[
    int, typer.Option(help="KV-group slots per rank and layer for second copies, which divide every step's work.")
]
DenseBelow = Annotated[int, typer.Option(help="Contexts up to this many tokens stay dense.")]
DenseTail = Annotated[int, typer.Option(help="So many last tokens of every prompt stay dense: the question.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def plan(
    profile_path: Profile,
    out: Out,
    tp: Ranks = 1,
    density: Density = None,
    recovery: Recovery = None,
    latency_budget: LatencyBudget = None,
    at_tokens: AtTokens = None,
    objective: Objective = "min_error",
    scope: Scope = "model",
    balance_aware: BalanceAware = False,
    weighing: Weighing = "measured",
    replicas: Replicas = 0,
    dense_below: DenseBelow = 1024,
    dense_tail: DenseTail = 0,
    rates: Rates = None,
    as_json: AsJson = False,
) -> None:
    """Turn a profile into budgets and a head placement for one tensor-parallel size.

    Times are predicted by the step planner that serving uses.

    Example: shplb plan m.profile.safetensors --tp 2 --latency-budget 400 --at-tokens 65536 --out m.plan.safetensors
    """
    from shplb.balance_gain import balance_gain
    from shplb.planning import PlanMaker
    from shplb.prediction import check_tokens, predict_prompt
    from shplb.profile import HeadProfile

    asked = one_of({"density": density, "recovery": recovery, "latency-budget": latency_budget})
    if at_tokens is not None:
        check_tokens(at_tokens)
    maker = PlanMaker(
        HeadProfile.load(profile_path),
        tp_size=tp,
        objective=objective,  # type: ignore[arg-type]
        scope=scope,  # type: ignore[arg-type]
        dense_below_tokens=dense_below,
        dense_tail_tokens=dense_tail,
        balance_aware=balance_aware,
        weighing=weighing,  # type: ignore[arg-type]
        replicas=replicas,
    )
    device = device_for(maker.profile.model, rates)
    found = find_density(maker, asked, at_tokens, device)
    made = maker.plan_of(allocation := maker.allocate(found), found)
    prediction = predict_prompt(made, at_tokens, device)
    gain = balance_gain(maker, allocation, found, prediction.tokens, device) if balance_aware else None
    made.save(out)
    if as_json:
        facts = {"plan": str(out), "asked": asked, **describe(made, maker, prediction, device)}
        typer.echo(json.dumps(facts | {"balance_gain": gain and dataclasses.asdict(gain)}, indent=1))
    else:
        print_tables(made, asked, prediction, device, gain)
    say(f"wrote {out}")


def print_tables(
    made: "ServingPlan", asked: dict[str, float], prediction: "PromptPrediction", device: "Device",
    gain: "BalanceGain | None",
) -> None:  # fmt: skip
    """The plan for people."""
    from shplb.show import print_plan
    from shplb.show_gain import print_gain

    console = Console(stderr=True)
    print_found(asked, made.density, console)
    print_plan(made, console, prediction, device)
    print_gain(gain, console)


def print_found(asked: dict[str, float], density: float, console: Console) -> None:
    """The density that a target came to."""
    for name, value in asked.items():
        if name != "density":
            console.print(f"--{name} {value:g} comes to density {density:g}", highlight=False)


def one_of(targets: dict[str, float | None]) -> dict[str, float]:
    """The one target that is given, by name; ValueError where none or more than one is."""
    asked = {name: value for name, value in targets.items() if value is not None}
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(f'--{name}' for name in asked)} were given, expected one of them.")
    if not asked:
        expected = " or ".join(f"--{name}" for name in targets)
        raise ValueError(f"nothing says how much attention to compute: give {expected} ({ADVICE}).")
    return asked


def find_density(maker: "PlanMaker", asked: dict[str, float], at_tokens: int | None, device: "Device") -> float:
    """The density that the target asks for."""
    from shplb.targets import density_for_latency, density_for_recovery

    if "recovery" in asked:
        return density_for_recovery(maker, asked["recovery"])
    if "latency-budget" in asked:
        return density_for_latency(maker, asked["latency-budget"], at_tokens, device)
    return asked["density"]


def describe(
    made: "ServingPlan", maker: "PlanMaker", prediction: "PromptPrediction", device: "Device"
) -> dict[str, Any]:
    """What the table shows, for JSON."""
    from shplb.chunk_advice import advise_chunk
    from shplb.crossover import crossover_tokens
    from shplb.kv_cost import KvCost
    from shplb.rank_loads import RankLoads, imbalance
    from shplb.recovered_mass import RecoveredMass
    from shplb.replica_price import price_of

    loads, longest = RankLoads.of(made), made.budgets[~maker.profile.inert][:, -1]
    advice = advise_chunk(made, prediction, device)
    recovered = RecoveredMass(maker.profile, maker.rule).means(made.budgets).tolist()
    return {
        "plan_hash": made.hash,
        "tp_size": made.tp_size,
        "density": made.density,
        "objective": made.objective,
        "scope": made.scope,
        "balance_aware": made.balance_aware,
        "replicas": made.replicas,
        "replica_price": dataclasses.asdict(price_of(made)) if made.replicas else None,
        "budgets": {
            "tokens": int(made.lengths[-1]),
            "mean": float(longest.mean()),
            "least": float(longest.min()),
            "most": float(longest.max()),
        },
        "recovery": {str(length): share for length, share in zip(made.lengths.tolist(), recovered, strict=True)},
        "prediction": dataclasses.asdict(prediction),
        "chunk_advice": advice and dataclasses.asdict(advice),
        "rates": device.origin,
        "crossover_tokens": crossover_tokens(made, device),
        "kv_cost": dataclasses.asdict(KvCost.of(made)),
        "profiled_tokens": made.lengths.tolist(),
        "imbalance": {name: imbalance(ranks) for name, ranks in loads.rows} | {"lower_bound": loads.bound_imbalance},
    }
