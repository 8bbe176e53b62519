# SPDX-License-Identifier: Apache-2.0
"""``shplb profile``: what every head of a model loses at every density."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shplb.commands.numbers import parse_numbers

if TYPE_CHECKING:
    from shplb.profile import HeadProfile
    from shplb.row_sampling import RowSampling
    from shplb.stability import Stability


def profile(
    model_path: Annotated[Path, typer.Option(help="Hugging Face model folder.")],
    out: Annotated[Path, typer.Option(help="Profile file to write.")],
    tp: Annotated[int, typer.Option(help="Ranks to profile with; the profile serves any TP size.")] = 1,
    max_tokens: Annotated[int, typer.Option(help="Length of the calibration documents, in tokens.")] = 4096,
    lengths: Annotated[str, typer.Option(help="Context lengths to measure, e.g. 1024,2048,4096.")] = "",
    documents: Annotated[int, typer.Option(help="Number of calibration documents.")] = 12,
    texts: Annotated[Path | None, typer.Option(help="Your own texts: FILE.jsonl or a folder.")] = None,
    row_sampling: Annotated[int, typer.Option(help="Measure one query row in N, 1 to 8; 1 is every row.")] = 8,
    seed: Annotated[int, typer.Option(help="Chooses the rows that are measured.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Model dtype, as for SGLang.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Measure what every head loses at every density, through SGLang's engine with dense attention.

    Stopped by Ctrl-C or a failure, the same command goes on after the last document that was done. Exit code 0 when the
    profile is written, 1 for an error, 130 after Ctrl-C.

    Example: shplb profile --model-path /models/Llama-3.1-8B-Instruct --max-tokens 32768 --out m.profile.safetensors
    """
    from shplb.calibration import check_request, choose_documents, default_lengths, profile_model
    from shplb.stability import stability

    console = Console(stderr=True)
    wanted = parse_lengths(lengths) if lengths else default_lengths(max_tokens)
    if device == "auto":
        from shplb.sglang.cpu import detect_device

        device = detect_device()
    check_request(
        model_path, out, lengths=wanted, limit=documents, tp_size=tp, device=device, row_sampling=row_sampling
    )
    chosen = choose_documents(model_path, max(wanted), texts=texts, limit=documents)
    if len(chosen) < documents:
        say(console, fewer_documents(len(chosen), documents, max(wanted), texts))
    try:
        with progress_bar(console) as bar:
            task = bar.add_task("profiling", total=len(chosen), name="starting SGLang")
            made = profile_model(
                model_path,
                chosen,
                out,
                lengths=wanted,
                tp_size=tp,
                device=device,
                dtype=dtype,
                row_sampling=row_sampling,
                seed=seed,
                on_document=lambda name: bar.update(task, advance=1, name=name),
            )
    except KeyboardInterrupt:
        say(console, "shplb: interrupted; the same command goes on after the last document that was done.")
        raise
    report = stability(made)
    if as_json:
        typer.echo(json.dumps(describe(made, report, out, asked=documents), indent=1))
    else:
        print_profile(made, report, console)
    say(console, f"wrote {out}: {len(chosen)} documents of {max(wanted)} tokens")


def progress_bar(console: Console) -> Progress:
    """A bar with the name of the last finished document and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[name]}", markup=False), console=console)


def print_profile(made: "HeadProfile", report: "Stability", console: Console) -> None:
    """What a person should know of a profile before planning with it."""
    from shplb.show_stability import print_stability

    print_stability(report, console)
    if made.row_sampling is not None:
        say(console, sampling_text(made.row_sampling))


def sampling_text(sampling: "RowSampling") -> str:
    """One line on which rows were measured and what that changes."""
    if (found := sampling.difference) is None:
        return "every query row was measured"
    return (
        f"1 query row in {sampling.every} was measured; against all rows of {found.document}, recovery differs by "
        f"{found.recovery_mean:.4f} in the mean and {found.recovery_worst:.4f} at most, output error by "
        f"{found.error_mean:.1%} and {found.error_worst:.1%} of each curve's largest"
    )


def describe(made: "HeadProfile", report: "Stability", out: Path, *, asked: int) -> dict[str, Any]:
    """The same for JSON. ``documents_asked`` is above the number of ``documents`` where the texts hold no more."""
    return {
        "profile": str(out),
        "documents_asked": asked,
        "documents": list(made.documents),
        "lengths": made.lengths.tolist(),
        "rows": made.rows.tolist(),
        "versions": made.versions,
        "row_sampling": msgspec.to_builtins(made.row_sampling),
        "stability": report.to_builtins(),
    }


def fewer_documents(found: int, asked: int, tokens: int, texts: Path | None) -> str:
    """One sentence for texts that hold fewer documents than were asked for."""
    which = "the shipped texts hold" if texts is None else f"the texts in {texts} hold"
    how = "give more text of your own (--texts)" if texts is None else "add more text"
    return f"{which} {found} documents of {tokens} tokens, not {asked}: {how}, or profile shorter ones (--max-tokens)."


def parse_lengths(text: str) -> tuple[int, ...]:
    """ "1024,4096" -> (1024, 4096); ValueError in one sentence for anything else."""
    return parse_numbers("--lengths", text, "positive token counts such as 1024,2048,4096")


def say(console: Console, text: str) -> None:
    """A line on stderr; brackets in file names are no markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
