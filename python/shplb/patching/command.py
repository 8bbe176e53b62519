# SPDX-License-Identifier: Apache-2.0
"""The command line of the patch: `shplb patch apply|check|revert`. Exit code 0: done, 1: refused or not applied."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import operations
from .operations import Outcome
from .refusal import PatchRefused
from .tree import State

app = typer.Typer(help="Apply, check or revert the patch of SGLang.", no_args_is_help=True)

Target = Annotated[
    Path | None,
    typer.Option(help="Root of a SGLang checkout, or a sglang package directory. Default: the installed sglang."),
]


@app.command()
def apply(target: Target = None) -> None:
    """Patch SGLang. Twice is as good as once; a kill leaves the old tree or the new one."""
    outcome = _done(operations.apply, target)
    typer.echo(f"{'already applied' if outcome.switch == 'none' else 'applied'}: {outcome.package}")


@app.command()
def check(target: Target = None) -> None:
    """Print "applied", "not applied" or "modified"; exit with 0 only if applied."""
    outcome = _done(operations.check, target)
    typer.echo(f"{outcome.state}: {outcome.package}")
    if outcome.fault:
        typer.echo(outcome.fault, err=True)
    if outcome.state is not State.APPLIED:
        raise typer.Exit(1)


@app.command()
def revert(target: Target = None) -> None:
    """Give the stock SGLang back, byte for byte."""
    outcome = _done(operations.revert, target)
    typer.echo(f"{'not applied, nothing to revert' if outcome.switch == 'none' else 'reverted'}: {outcome.package}")


def _done(operation: Callable[[Path | None], Outcome], target: Path | None) -> Outcome:
    try:
        return operation(target)
    except PatchRefused as refusal:
        typer.echo(f"refused: {refusal}", err=True)
        raise typer.Exit(1) from refusal
