# SPDX-License-Identifier: Apache-2.0
"""The ``shplb`` command: plan, show and the rest; longer commands have a module of their own."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shplb.commands.calibrate import calibrate
from shplb.commands.doctor import doctor
from shplb.commands.messages import say
from shplb.commands.plan import plan
from shplb.commands.profile import profile
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
app.command()(profile)
app.command()(plan)
app.command()(doctor)
app.command()(calibrate)
app.command()(simulate)
app.command()(report)
app.add_typer(patch_app, name="patch", help="Apply, check or revert the patch of the pinned SGLang.")


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
