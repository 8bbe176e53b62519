# SPDX-License-Identifier: Apache-2.0
"""``shplb pad``: zero KV groups for TP sizes that a model's heads don't divide over."""

import json
from pathlib import Path
from typing import Annotated

import typer

from shplb.commands.messages import say


def pad(
    model_path: Annotated[Path, typer.Argument(help="Hugging Face model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    kv_heads: Annotated[int, typer.Option(help="KV heads after padding.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Add zero KV groups to a model, so that its heads divide over more TP sizes; outputs stay the same.

    Example: shplb pad /models/SmolLM2-135M /models/SmolLM2-135M-4 --kv-heads 4
    """
    from shplb.hf.padding import pad_kv_groups

    written = pad_kv_groups(model_path, out, kv_heads)
    if as_json:
        typer.echo(json.dumps({"model": str(written), "kv_heads": kv_heads}))
    else:
        say(f"wrote {written}")
