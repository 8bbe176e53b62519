# SPDX-License-Identifier: Apache-2.0
"""The command line of the patch: `shplb patch apply|check|revert`. Exit code 0: done, 1: refused or not applied."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..exit_codes import EPILOG
from . import operations
from .operations import Outcome
from .refusal import PatchRefused
from .tree import State

app = typer.Typer(help="Apply, check or revert the patch of SGLang.", epilog=EPILOG, no_args_is_help=True)

Target = Annotated[
    Path | None,
    typer.Option(help="Root of a SGLang checkout, or a sglang package directory. Default: the installed sglang."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


@app.command(epilog=EPILOG)
def apply(target: Target = None, as_json: AsJson = False) -> None:
    """Patch SGLang. Twice is as good as once; a kill leaves the old tree or the new one.

    Example: shplb patch apply
    """
    outcome = _done(operations.apply, target)
    _tell(outcome, "already applied" if outcome.switch == "none" else "applied", as_json)


@app.command(epilog=EPILOG)
def check(target: Target = None, as_json: AsJson = False) -> None:
    """Print "applied", "not applied" or "modified"; exit with 0 only if applied.

    Example: shplb patch check --target ~/src/sglang
    """
    outcome = _done(operations.check, target)
    _tell(outcome, str(outcome.state), as_json)
    if outcome.fault:
        typer.echo(outcome.fault, err=True)
    if outcome.state is not State.APPLIED:
        raise typer.Exit(1)


@app.command(epilog=EPILOG)
def revert(target: Target = None, as_json: AsJson = False) -> None:
    """Give the stock SGLang back, byte for byte.

    Example: shplb patch revert
    """
    outcome = _done(operations.revert, target)
    _tell(outcome, "not applied, nothing to revert" if outcome.switch == "none" else "reverted", as_json)


def _tell(outcome: Outcome, what: str, as_json: bool) -> None:
    facts = {"state": str(outcome.state), "changed": outcome.switch != "none", "package": str(outcome.package)}
    typer.echo(json.dumps(facts) if as_json else f"{what}: {outcome.package}")


def _done(operation: Callable[[Path | None], Outcome], target: Path | None) -> Outcome:
    try:
        return operation(target)
    except PatchRefused as refusal:
        typer.echo(f"refused: {refusal}", err=True)
        raise typer.Exit(1) from refusal
