# SPDX-License-Identifier: Apache-2.0
"""``shplb profile``: what every head of a model loses at every density."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from shplb.commands.messages import say
from shplb.commands.numbers import parse_numbers

if TYPE_CHECKING:
    from shplb.calibration import ProfileSettings
    from shplb.profile import HeadProfile
    from shplb.row_sampling import RowSampling
    from shplb.stability import Stability
    from shplb.texts import Document


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
    importance: Annotated[
        str, typer.Option(help="none, or fisher (experimental): weigh heads by what their error costs the loss.")
    ] = "none",
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Model dtype, as for SGLang.")] = "auto",
    attention_backend: Annotated[str, typer.Option(help="As for SGLang; default: its own choice.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Measure what every head loses at every density, through SGLang's engine with dense attention.

    Stopped by Ctrl-C or a failure, the same command goes on after the last document that was done.

    Example: shplb profile --model-path /models/Llama-3.1-8B-Instruct --max-tokens 32768 --out m.profile.safetensors
    """
    from shplb.calibration import ProfileSettings, check_request, choose_documents, default_lengths
    from shplb.stability import stability

    console = Console(stderr=True)
    if device == "auto":
        from shplb.sglang.cpu import detect_device

        device = detect_device()
    wanted = parse_lengths(lengths) if lengths else default_lengths(max_tokens)
    settings = ProfileSettings(wanted, tp, device, dtype, row_sampling, seed, attention_backend)
    check_importance(importance)
    check_request(model_path, out, settings, limit=documents)
    chosen = choose_documents(model_path, max(wanted), texts=texts, limit=documents)
    if len(chosen) < documents:
        say(fewer_documents(len(chosen), documents, max(wanted), texts))
    weighed = choose_weighed(model_path, max(wanted), texts, documents) if importance == "fisher" else []
    made = run(model_path, chosen, weighed, out, settings, console)
    report = stability(made)
    if as_json:
        typer.echo(json.dumps(describe(made, report, out, asked=documents), indent=1))
    else:
        print_profile(made, report, console)
    say(f"wrote {out}: {len(chosen)} documents of {max(wanted)} tokens")


def check_importance(method: str) -> None:
    """ValueError in one sentence for a method that there is not."""
    from shplb.importance import METHODS

    if method not in METHODS:
        raise ValueError(f"--importance is {method}, expected {' or '.join(METHODS)}.")


def choose_weighed(model_path: Path, longest: int, texts: Path | None, documents: int) -> "list[Document]":
    """Documents for the pass that measures importance: shorter and fewer, since it keeps activations."""
    from shplb.calibration import choose_documents
    from shplb.importance import MOST_TOKENS, NUM_DOCUMENTS

    return choose_documents(model_path, min(longest, MOST_TOKENS), texts=texts, limit=min(documents, NUM_DOCUMENTS))


def run(
    model_path: Path,
    chosen: "list[Document]",
    weighed: "list[Document]",
    out: Path,
    settings: "ProfileSettings",
    console: Console,
) -> "HeadProfile":
    """Profile under a progress bar; Ctrl-C says how to go on."""
    from shplb.calibration import profile_model

    try:
        with progress_bar(console) as bar:
            task = bar.add_task("profiling", total=len(chosen), name="starting SGLang")
            second = bar.add_task("importance", total=len(weighed), name="", visible=bool(weighed), start=False)
            return profile_model(
                model_path,
                chosen,
                out,
                settings,
                importance_documents=weighed,
                on_document=lambda name: bar.update(task, advance=1, name=name),
                on_importance=lambda name: advance(bar, second, name),
            )
    except KeyboardInterrupt:
        say("shplb: interrupted; the same command goes on after the last document that was done.")
        raise


def progress_bar(console: Console) -> Progress:
    """A bar with the name of the last finished document and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[name]}", markup=False), console=console)


def advance(bar: Progress, task: TaskID, name: str) -> None:
    """Count a document of a task that may not have begun when the bar did."""
    bar.start_task(task)
    bar.update(task, advance=1, name=name)


def print_profile(made: "HeadProfile", report: "Stability", console: Console) -> None:
    """What a person should know of a profile before planning with it."""
    from shplb.show_stability import print_stability

    print_stability(report, console)
    if made.row_sampling is not None:
        say(sampling_text(made.row_sampling))
    if made.importance_method:
        say(importance_text(made))


def sampling_text(sampling: "RowSampling") -> str:
    """One line on which rows were measured and what that changes."""
    if (found := sampling.difference) is None:
        return "every query row was measured"
    return (
        f"1 query row in {sampling.every} was measured; against all rows of {found.document}, recovery differs by "
        f"{found.recovery_mean:.4f} in the mean and {found.recovery_worst:.4f} at most, output error by "
        f"{found.error_mean:.1%} and {found.error_worst:.1%} of each curve's largest"
    )


def importance_text(made: "HeadProfile") -> str:
    """One line on the spread of importance over heads."""
    least, median, most = np.quantile(made.importance[~made.inert], [0.05, 0.5, 0.95])
    return (
        f"importance of heads ({made.importance_method}): 5% below {least:.2g}, median {median:.2g}, "
        f"5% above {most:.2g} of the mean; plans of objective min_error use it"
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
        "importance": {"method": made.importance_method or "none", "weights": made.importance.tolist()},
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
