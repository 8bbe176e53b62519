# SPDX-License-Identifier: Apache-2.0
"""``shplb quickstart``: from nothing to an answer under a plan."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def quickstart(
    folder: Annotated[
        Path | None, typer.Option(help="Where files go (default: .cache/quickstart).", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, progress on stderr.")] = False,
) -> None:
    """Profile, plan and serve SmolLM2-135M with S-HPLB, and ask it a long question.

    Example: shplb quickstart --folder ~/shplb-quickstart
    """
    from shplb.quickstart.run import default_folder, run

    outcome = run(default_folder() if folder is None else folder, Console(stderr=as_json))
    if as_json:
        typer.echo(json.dumps(outcome, indent=1))
