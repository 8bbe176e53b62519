# SPDX-License-Identifier: Apache-2.0
"""``shplb report``: a plan as one HTML file with pictures."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shplb.commands.messages import say


def report(
    plan_path: Annotated[Path, typer.Argument(metavar="PLAN", help="File made by `shplb plan`.")],
    out: Annotated[Path, typer.Option(help="HTML file to write, in a folder that exists.")],
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile of the same model: adds needed densities, curves, stability.", show_default=False),
    ] = None,
    bench: Annotated[
        list[Path] | None,
        typer.Option(help="JSON file made by a bench, shown as tables; may be given again.", show_default=False),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder to write the figures into as well, as SVG files.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Show a plan in one HTML file: rank loads before and after placement, budgets, curves, a step, bench results.

    The file needs no network and no other file.

    Example: shplb report m.tp2.plan.safetensors --profile m.profile.safetensors --out m.html
    """
    from shplb.plan import ServingPlan
    from shplb.profile import HeadProfile
    from shplb.report import make_report, write_figures

    plan = ServingPlan.load(plan_path)
    shown = None if profile is None else HeadProfile.load(profile)
    make_report(plan, shown, bench or (), out=out)
    drawn = [] if figures is None else [str(path) for path in write_figures(plan, shown, figures)]
    if as_json:
        facts = {"report": str(out), "bytes": out.stat().st_size, "plan_hash": plan.hash, "figures": drawn}
        typer.echo(json.dumps(facts, indent=1))
    else:
        for path in (out, *drawn):
            say(f"wrote {path}")
