# SPDX-License-Identifier: Apache-2.0
"""``shplb simulate``: what a plan would do to the time to first token of given traffic, without a GPU."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shplb.commands.messages import say
from shplb.commands.numbers import parse_numbers
from shplb.commands.rates import device_for

if TYPE_CHECKING:
    from shplb.device import Device
    from shplb.plan import ServingPlan
    from shplb.simulation import StepCost, Summary
    from shplb.traces import Trace

Rates = Annotated[
    Path | None,
    typer.Option(help="File made by `shplb calibrate` (default: the cached one, else an H200's).", show_default=False),
]
Fit = Annotated[
    Path | None,
    typer.Option(
        help="Fit the times below to measured ones: JSON of bench_serving.py, or output of SGLang's benchmark against "
        "stock SGLang with one client.",
        show_default=False,
    ),
]


def simulate(
    plan_path: Annotated[Path, typer.Argument(metavar="PLAN", help="File made by `shplb plan`.")],
    trace_path: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRACE",
            show_default=False,
            help="Output of `python -m sglang.benchmark.serving --output-details --output-file TRACE`, or lines of "
            '{"arrival_s": 0.5, "input_tokens": 8192, "output_tokens": 100}, also with "prefix_tokens".',
        ),
    ] = None,
    synthetic: Annotated[
        str, typer.Option(help="Instead of TRACE: requests=200,rate=2,input=1024-32768,output=128,seed=0.")
    ] = "",
    tp: Annotated[str, typer.Option(help="TP sizes to compare, e.g. 2,4,8 (default: the plan's).")] = "",
    chunked_prefill_size: Annotated[int, typer.Option(help="As for SGLang; -1 for whole prompts.")] = 8192,
    rates: Rates = None,
    fit: Fit = None,
    step_ms: Annotated[float | None, typer.Option(help="Time of a prefill step that depends on nothing, ms.")] = None,
    token_us: Annotated[float | None, typer.Option(help="Time of a new token besides attention, us.")] = None,
    prompt_us: Annotated[float | None, typer.Option(help="Time of a prompt token before all steps, us.")] = None,
    decode_ms: Annotated[float, typer.Option(help="Time of a decode step, ms.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Replay a trace through the step planner: time to first token and waiting, before and after placement.

    Times besides attention are those of a Llama-3.1-8B shape at TP=2 on H200 unless fitted or given, and the same for
    every TP size.

    Example: shplb simulate m.tp2.plan.safetensors --synthetic requests=200,rate=0.5,input=8192-65536 --tp 2,4
    """
    from shplb.plan import ServingPlan
    from shplb.simulation import compare_placements
    from shplb.traces import TraceError, read_trace, synthetic_trace

    if (trace_path is None) == (not synthetic):
        given = "both TRACE and --synthetic" if synthetic else "neither TRACE nor --synthetic"
        raise TraceError(f"{given} were given, expected one of them.")
    plan = ServingPlan.load(plan_path)
    device = device_for(plan.model, rates)
    given_times = {"step_ms": step_ms, "token_us": token_us, "prompt_us": prompt_us}
    cost, origin = step_cost(plan, device, fit, given_times, decode_ms, chunked_prefill_size)
    sizes = parse_sizes(tp) if tp else (plan.tp_size,)
    trace = read_trace(trace_path) if trace_path is not None else synthetic_trace(synthetic)
    summaries = compare_placements(plan, trace, sizes, cost, device)
    if as_json:
        facts = {"plan": plan.hash, "trace": describe(trace), "cost": dataclasses.asdict(cost)}
        facts |= {"rates": device.origin, "cost_origin": origin}
        results = [dataclasses.asdict(summary) for summary in summaries]
        typer.echo(json.dumps({**facts, "results": results}, indent=1))
    else:
        print_summaries(summaries, trace, Console())
        say(f"attention: {device.origin}")
        say(cost_text(cost, origin))


def step_cost(
    plan: "ServingPlan",
    device: "Device",
    fit: Path | None,
    given: dict[str, float | None],
    decode_ms: float,
    chunk_tokens: int,
) -> "tuple[StepCost, str]":
    """What steps take besides attention, and where that comes from: ``given`` beats fitted beats built in."""
    from shplb.simulation import StepCost
    from shplb.step_fit import fit_step_cost, read_points

    if fit is None:
        cost, origin = StepCost(chunk_tokens=chunk_tokens), "Llama-3.1-8B, TP 2, H200"
    else:
        made = fit_step_cost(plan, read_points(fit), tp_size=plan.tp_size, chunk_tokens=chunk_tokens, device=device)
        cost = made.cost
        origin = (
            f"fitted to {made.points} points of {fit.name}, off by {made.median_error:.0%} in the median, "
            f"{made.worst_error:.0%} at worst"
        )
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen:
        origin = f"given: {', '.join(chosen)}; else {origin}"
    changes: dict[str, Any] = {**chosen, "decode_ms": decode_ms}
    return dataclasses.replace(cost, **changes), origin


def cost_text(cost: "StepCost", origin: str) -> str:
    return (
        f"besides attention: {cost.step_ms:g} ms a step, {cost.token_us:g} us a new token, {cost.prompt_us:g} us a "
        f"prompt token, {cost.decode_ms:g} ms a decode step ({origin})"
    )


def parse_sizes(text: str) -> tuple[int, ...]:
    """ "2,8,4" -> (2, 4, 8); ValueError in one sentence for anything else."""
    return parse_numbers("--tp", text, "numbers of ranks such as 2,4,8")


def describe(trace: "Trace") -> dict[str, Any]:
    """Facts of a trace for JSON; times in seconds."""
    from shplb.simulation import ttft_statistics

    measured = None if trace.measured_ttft_s is None else ttft_statistics(trace.measured_ttft_s)
    return {
        "origin": trace.origin,
        "requests": len(trace.arrival_s),
        "input_tokens": int(trace.input_tokens.sum()),
        "output_tokens": int(trace.output_tokens.sum()),
        "prefix_tokens": int(trace.prefix_tokens.sum()),
        "concurrency": trace.concurrency,
        "measured": measured,
    }


def print_summaries(summaries: "list[Summary]", trace: "Trace", console: Console) -> None:
    """One row per TP size and placement; times in seconds."""
    columns = (
        "tp",
        "heads",
        "TTFT\nmean",
        "TTFT\np50",
        "TTFT\np99",
        "attention",
        "bubble",
        "balanced-\nness",
        "sparse",
    )
    table = Table(
        caption="times in seconds", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "heads" else "right", no_wrap=True)
    facts = describe(trace)
    if measured := facts["measured"]:
        times = (measured["ttft_mean_s"], measured["ttft_p50_s"], measured["ttft_p99_s"])
        table.add_row("", "measured", *map(_seconds, times), end_section=True)
    last = {row.tp_size: row.placement for row in summaries}
    for row in summaries:
        sparse = row.placement != "dense"
        table.add_row(
            str(row.tp_size),
            row.placement,
            *map(_seconds, (row.ttft_mean_s, row.ttft_p50_s, row.ttft_p99_s, row.attention_s)),
            f"{row.bubble:.1%}" if sparse else "",
            f"{row.balancedness:.3f}" if sparse else "",
            f"{row.sparse_share:.0%}" if sparse else "",
            end_section=row.placement == last[row.tp_size],
        )
    console.print(trace.origin, markup=False, highlight=False, soft_wrap=True)
    steps = [row.prefill_steps for row in summaries]
    console.print(
        f"{facts['input_tokens']} prompt tokens in {min(steps)} to {max(steps)} prefill steps", highlight=False
    )
    console.print(table)


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.0f}"
