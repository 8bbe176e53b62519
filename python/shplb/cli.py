# SPDX-License-Identifier: Apache-2.0
"""The ``shplb`` command: profile, plan and the rest; longer commands have a module of their own."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shplb.commands.calibrate import calibrate
from shplb.commands.doctor import doctor
from shplb.commands.numbers import parse_numbers
from shplb.commands.plan import plan
from shplb.commands.report import report
from shplb.commands.simulate import simulate
from shplb.patching.command import app as patch_app

app = typer.Typer(
    name="shplb",
    help="Head-adaptive sparse prefill attention for SGLang, balanced over tensor-parallel GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(plan)
app.command()(doctor)
app.command()(calibrate)
app.command()(simulate)
app.command()(report)
app.add_typer(patch_app, name="patch", help="Apply, check or revert the patch of the pinned SGLang.")
console = Console(stderr=True)


@app.command()
def profile(
    model_path: Annotated[Path, typer.Option(help="Hugging Face model folder.")],
    out: Annotated[Path, typer.Option(help="Profile file to write.")],
    tp: Annotated[int, typer.Option(help="Ranks to profile with; the profile serves any TP size.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Length of the calibration documents, in tokens.")] = 4096,
    lengths: Annotated[str, typer.Option(help="Context lengths to measure, e.g. 1024,2048,4096.")] = "",
    documents: Annotated[int, typer.Option(help="Number of calibration documents.")] = 4,
    texts: Annotated[Path | None, typer.Option(help="Your own texts: FILE.jsonl or a folder.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Model dtype, as for SGLang.")] = "auto",
) -> None:
    """Measure what every head loses at every density, through SGLang's engine with dense attention."""
    from shplb.calibration import check_request, choose_documents, default_lengths, profile_model
    from shplb.show_stability import print_stability
    from shplb.stability import stability

    wanted = parse_lengths(lengths) if lengths else default_lengths(max_tokens)
    if device == "auto":
        from shplb.sglang.cpu import detect_device

        device = detect_device()
    check_request(model_path, out, lengths=wanted, limit=documents, tp_size=tp, device=device)
    chosen = choose_documents(model_path, max(wanted), texts=texts, limit=documents)
    columns = (TextColumn("profiling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[name]}", markup=False), console=console) as bar:
        task = bar.add_task("profiling", total=len(chosen), name="starting SGLang")
        made = profile_model(
            model_path,
            chosen,
            out,
            lengths=wanted,
            tp_size=tp,
            device=device,
            dtype=dtype,
            on_document=lambda name: bar.update(task, advance=1, name=name),
        )
    print_stability(stability(made), console)
    say(f"wrote {out}: {len(chosen)} documents of {max(wanted)} tokens")


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A plan file.")]) -> None:
    """Show a plan: budgets as a map of heads, rank loads before and after placement."""
    from shplb.plan import ServingPlan
    from shplb.show import print_head_map, print_plan

    loaded = ServingPlan.load(path)
    output = Console()
    print_plan(loaded, output)
    print_head_map(loaded, output)


@app.command()
def pad(
    model_path: Annotated[Path, typer.Argument(help="Hugging Face model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    kv_heads: Annotated[int, typer.Option(help="KV heads after padding.")],
) -> None:
    """Add zero KV groups to a model, so that its heads divide over more TP sizes; outputs stay the same."""
    from shplb.hf.padding import pad_kv_groups

    say(f"wrote {pad_kv_groups(model_path, out, kv_heads)}")


@app.command()
def quickstart(
    folder: Annotated[Path | None, typer.Option(help="Where files go (default: .cache/quickstart).")] = None,
) -> None:
    """Profile, plan and serve SmolLM2-135M with S-HPLB, and ask it a long question."""
    from shplb.quickstart.run import default_folder, run

    run(default_folder() if folder is None else folder)


def say(text: str) -> None:
    """A line on stderr; brackets in file names are no markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def parse_lengths(text: str) -> tuple[int, ...]:
    """ "1024,4096" -> (1024, 4096); ValueError in one sentence for anything else."""
    return parse_numbers("--lengths", text, "positive token counts such as 1024,2048,4096")


def main() -> None:
    """Console entry: a user's mistake is one sentence and exit code 1, never a traceback."""
    from shplb import Infeasible
    from shplb.errors import UserError
    from shplb.processes import interrupt_on_sigterm

    interrupt_on_sigterm()
    try:
        app()
    except ImportError as error:
        say(f"shplb: {error}; run `make env`, or install shplb with its extras.")
        sys.exit(1)
    except (ValueError, OSError, UserError, Infeasible) as error:
        say(f"shplb: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
