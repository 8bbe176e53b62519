# SPDX-License-Identifier: Apache-2.0
"""``shplb doctor``: what is installed, patched, cached and supported, in one screen."""

import dataclasses
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from shplb.diagnosis import Finding

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    model_path: Annotated[
        str | None, typer.Option(help="Model folder: also say what would be refused about it.", show_default=False)
    ] = None,
    tp: Annotated[int, typer.Option(help="Ranks that would serve it.")] = 1,
    prebuild: Annotated[
        bool,
        typer.Option("--prebuild", help="Compile the model's GPU kernel now (about 90 s), not at the first start."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check versions, patch, plugin, GPUs and cached plans; exit with 0 only if all is well.

    Example: shplb doctor --model-path /models/Llama-3.1-8B-Instruct --tp 2
    """
    from shplb.diagnosis import examine

    if tp < 1:
        raise ValueError(f"--tp is {tp}, expected one rank or more.")
    if prebuild and model_path is None:
        raise ValueError("--prebuild compiles the kernel of one model; give it with --model-path.")
    waiting = Console(stderr=True).status("compiling the GPU kernel, where needed") if prebuild else nullcontext()
    with waiting:
        findings = examine(model_path, tp, prebuild=prebuild)
    healthy = all(finding.level != "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "findings": [dataclasses.asdict(f) for f in findings]}, indent=1))
    else:
        print_findings(findings, Console())
    if not healthy:
        raise typer.Exit(1)


def print_findings(findings: "list[Finding]", console: Console) -> None:
    """One row per finding, with the fix under a problem, and the verdict."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    area = ""
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\nto fix: {finding.fix}", style="bold")
        table.add_row(
            Text(finding.level, style=_STYLES[finding.level]), finding.area if finding.area != area else "", text
        )
        area = finding.area
    console.print(table, highlight=False)
    problems = sum(finding.level == "problem" for finding in findings)
    verdict = "all is well" if problems == 0 else f"{problems} problem{'' if problems == 1 else 's'} to fix"
    console.print(Text(verdict, style=_STYLES["problem" if problems else "ok"]))
