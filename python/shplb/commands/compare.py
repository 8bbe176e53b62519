# SPDX-License-Identifier: Apache-2.0
"""``shplb compare``: which budgets keep quality, measured on held-out documents, and what to serve."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shplb.commands.messages import say
from shplb.commands.rates import device_for

if TYPE_CHECKING:
    from shplb.budget import Objective, Scope
    from shplb.quality.comparison import Comparison

# The options, apart from the function that takes them.
Profile = Annotated[Path, typer.Argument(metavar="PROFILE", help="File made by `shplb profile`.")]
Model = Annotated[Path, typer.Option(help="The profiled model's folder.")]
Out = Annotated[Path | None, typer.Option(help="Plan file to write if one is recommended.", show_default=False)]
Ranks = Annotated[int, typer.Option(help="Tensor-parallel size.")]
Tokens = Annotated[int, typer.Option(help="Length of texts and prompts (default: the longest profiled).")]
Densities = Annotated[str, typer.Option(help="Shares of attention to compute, e.g. 0.1,0.25.")]
Ways = Annotated[str, typer.Option(help="OBJECTIVE:SCOPE of each way to make budgets (default: all five).")]
Texts = Annotated[int, typer.Option(help="Held-out texts.")]
Prompts = Annotated[int, typer.Option(help="Retrieval prompts.")]
Tolerance = Annotated[float, typer.Option(help="Text NLL over dense that is still good, nats per token.")]
Seed = Annotated[int, typer.Option(help="Chooses texts and prompts.")]
RunsOn = Annotated[str, typer.Option(help="auto, cuda or cpu.")]
Backend = Annotated[str, typer.Option(help="--attention-backend of all servers (default: SGLang's own choice).")]
Rates = Annotated[Path | None, typer.Option(help="File made by `shplb calibrate`.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def compare(
    profile_path: Profile,
    model_path: Model,
    out: Out = None,
    tp: Ranks = 1,
    tokens: Tokens = 0,
    densities: Densities = "0.25,0.45",
    ways: Ways = "",
    texts: Texts = 6,
    prompts: Prompts = 12,
    tolerance: Tolerance = 0.05,
    seed: Seed = 1,
    device: RunsOn = "auto",
    attention_backend: Backend = "",
    rates: Rates = None,
    as_json: AsJson = False,
) -> None:
    """Compare ways to make budgets by NLL and retrieval on texts that calibration never saw, and recommend one.

    Serves the model dense and then once per way and density, through SGLang, one server after the other.

    Example: shplb compare m.profile.safetensors --model-path /models/Llama-3.1-8B-Instruct --tp 2 --out m.plan
    """
    from shplb.profile import HeadProfile
    from shplb.quality.comparison import Question, compare_budgets
    from shplb.quality.held_out import held_out
    from shplb.sglang.cpu import detect_device

    profile = HeadProfile.load(profile_path)
    question = Question(
        model_path=model_path,
        ways=parse_ways(ways),
        densities=parse_densities(densities),
        tokens=tokens or int(profile.lengths[-1]),
        tp_size=tp,
        device=detect_device() if device == "auto" else device,
        tolerance=tolerance,
        attention_backend=attention_backend,
    )
    predicted = device_for(profile.model, rates)
    chosen = held_out(model_path, profile, question.tokens, texts=texts, prompts=prompts, seed=seed)
    with Console(stderr=True).status("serving") as status:
        found = compare_budgets(
            profile, question, *chosen, predicted, on_server=lambda name: status.update(f"serving {name}")
        )
    if as_json:
        typer.echo(json.dumps(describe(found, question.tokens), indent=1))
    else:
        print_comparison(found, question.tokens, Console())
    if out is not None and found.plan is not None:
        found.plan.save(out)
        say(f"wrote {out}")


def parse_ways(text: str) -> "tuple[tuple[Objective, Scope], ...]":
    """ "min_error:model,uniform:model" -> pairs; all where empty; ValueError in one sentence for anything else."""
    from shplb.quality.candidates import WAYS

    known = {f"{objective}:{scope}": (objective, scope) for objective, scope in WAYS}
    names = list(dict.fromkeys(text.split(","))) if text else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--ways has '{unknown[0]}', expected some of {', '.join(known)}.")
    return tuple(known[name] for name in names)


def parse_densities(text: str) -> tuple[float, ...]:
    """ "0.25,0.1" -> (0.1, 0.25); ValueError in one sentence for anything else."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(0.0 < value <= 1.0 for value in found):
        raise ValueError(f"--densities is '{text}', expected shares of attention such as 0.1,0.25.")
    return found


def describe(found: "Comparison", tokens: int) -> dict[str, Any]:
    """The table's facts for JSON."""
    facts = {name: getattr(found, name) for name in ("dense_nll", "dense_right", "prompts", "windows")}
    rows = [dataclasses.asdict(row) for row in found.rows]
    return {"tokens": tokens, **facts, "rows": rows, "recommendation": dataclasses.asdict(found.recommendation)}


def print_comparison(found: "Comparison", tokens: int, console: Console) -> None:
    """One row per candidate, and the recommendation."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("budgets")
    for name in ("asked", "com-\nputed", "NLL over\ndense", "95 %", "right", "lost", "won", "keeps\nquality"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("dense", "", "1", "0", "", f"{found.dense_right} of {found.prompts}", "", "", "", end_section=True)
    for row in found.rows:
        table.add_row(
            row.name, f"{row.asked:g}", f"{row.computed_density:.3f}", f"{row.nll_over_dense:+.4f}",
            f"± {row.nll_interval:.4f}", f"{row.answers_right} of {found.prompts}", str(row.answers_lost),
            str(row.answers_won), "yes" if row.keeps_quality else "",
        )  # fmt: skip
    console.print(
        f"{tokens} tokens, {found.windows} windows of held-out text (dense {found.dense_nll:.4f} nats a token), "
        f"right answers to {found.prompts} retrieval prompts", highlight=False,
    )  # fmt: skip
    console.print(table)
    made = found.recommendation
    what = "dense (no plan)" if made.name is None else f"{made.name} at {made.asked:g}"
    console.print(f"recommended: {what}: {made.why}", highlight=False)
