# SPDX-License-Identifier: Apache-2.0
"""What the serving bench asks of SGLang's benchmark, what it keeps of the answer and the counters, and its table."""

import re
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shplb.errors import UserError

STOCK = ("stock", "fa3", "flashinfer")
SPARSE = ("shplb", "shplb-contiguous", "shplb-replicas", "shplb-no-tail")


class PointFailedError(UserError):
    """A point that gave no usable numbers; the message is one sentence."""


class WrongPathError(UserError):
    """The server computed something else than the variant's name says, so the numbers would mislead."""


def client_options(
    port: int, *, length: int, concurrency: int, prompts: int, output_tokens: int, seed: int, file: Path
) -> list[str]:
    """Arguments of ``python -m sglang.benchmark.serving`` for one point.

    Prompts are sent as token ids, so that lengths are exact. The warm-up is ours: the benchmark's own would send the
    first prompt, which the radix cache then holds if the flush after it comes too early.
    """
    options = ["--backend", "sglang", "--host", "127.0.0.1", "--port", str(port), "--dataset-name", "random-ids"]
    options += ["--random-input-len", str(length), "--random-output-len", str(output_tokens)]
    options += ["--random-range-ratio", "1.0", "--tokenize-prompt", "--num-prompts", str(prompts)]
    options += ["--max-concurrency", str(concurrency), "--warmup-requests", "0", "--flush-cache", "--cache-report"]
    options += ["--output-details"]
    # With one seed for all points, short prompts would be prefixes of long ones.
    seed = (seed + 97 * length + concurrency) % 2**32
    return [*options, "--seed", str(seed), "--disable-tqdm", "--output-file", str(file)]


def point_of(record: dict[str, Any], length: int, prompts: int) -> dict[str, Any]:
    """The numbers we keep of one line of the benchmark's output; PointFailedError if they are not what was asked."""
    cached = record["cache_report"]["total_cached_tokens"]
    checks = {
        f"{record['completed']} of {prompts} requests were answered": record["completed"] == prompts,
        f"{record['total_input_tokens']} prompt tokens were sent": record["total_input_tokens"] == prompts * length,
        f"{cached} prompt tokens came from the radix cache": cached == 0,
        "an answer had no text, so there is no TTFT": min(record["ttfts"], default=0) > 0,
    }
    for sentence, good in checks.items():
        if not good:
            raise PointFailedError(f"{sentence}, at {length} tokens and {prompts} prompts.")
    names = {"median_ttft_ms": "ttft_p50_ms", "p99_ttft_ms": "ttft_p99_ms", "median_itl_ms": "itl_p50_ms"}
    numbers = {ours: round(record[theirs], 3) for theirs, ours in names.items()}
    return numbers | {
        "ttft_ms": [round(1000 * seconds, 3) for seconds in record["ttfts"]],
        "input_tokens_per_s": round(record["input_throughput"], 1),
        "prompts": prompts,
        "duration_s": round(record["duration"], 2),
    }


def path_taken(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the server's counters say of the steps between two looks at them."""
    keys = ("sparse_steps", "dense_steps", "computed_row_pages", "causal_row_pages")
    sparse, dense, computed, causal = (after[key] - before[key] for key in keys)
    return {"sparse_steps": sparse, "dense_steps": dense, "density": round(computed / causal, 4) if causal else None}


def check_path(variant: str, length: int, path: dict[str, Any], sparse_from: int) -> None:
    """WrongPathError where an S-HPLB server stayed dense at a length at which it is there to be sparse."""
    if length >= sparse_from and not path["sparse_steps"]:
        raise WrongPathError(
            f"{variant} took {path['dense_steps']} prefill steps at {length} tokens and none of them was sparse, so "
            "its times say nothing about S-HPLB: look for the reason in the server's log."
        )


def public_command(command: str) -> str:
    """``command`` with file names instead of paths, which differ from machine to machine and tell nothing."""
    parts = [Path(part).name if part.startswith("/") else part for part in shlex.split(command)]
    return shlex.join(parts)


def sentence_of(error: Exception) -> str:
    """One line of an error that holds the end of a log: what happened, and the last line of the log that says why."""
    first, *rest = re.sub(r"(?<![\w/:])/\S*/", "", str(error)).splitlines() or [""]
    why = [line.strip() for line in rest if re.search(r"Error|can't start", line)]
    return f"{first} {why[-1]}" if why else first


def _point_key(row: dict[str, Any]) -> tuple[int, int, int]:
    """(prompt tokens, clients, tokens of it that are not in the radix cache)."""
    return row["input_tokens"], row["concurrency"], row.get("new_tokens", row["input_tokens"])


def table_of(rows: list[dict[str, Any]], variants: list[str]) -> list[list[str]]:
    """Header and one line per point: median TTFT in ms, and that of the best stock variant over it."""
    lines = [["tokens", "clients"]]
    for variant in variants:
        lines[0] += [f"{variant} ms", "ratio"]
    ttft = {(*_point_key(row), row["variant"]): row["ttft_p50_ms"] for row in rows}
    for point in sorted({key[:-1] for key in ttft}):
        length, concurrency, new = point
        line = [f"{new} of {length}" if new < length else str(length), str(concurrency)]
        stock = [ttft[*point, name] for name in STOCK if (*point, name) in ttft]
        for variant in variants:
            own = ttft.get((*point, variant))
            line += ["-" if own is None else f"{own:.1f}", f"{min(stock) / own:.2f}" if own and stock else "-"]
        lines.append(line)
    return lines


def print_table(result: dict[str, Any], variants: list[str]) -> None:
    header, *lines = table_of(result["rows"], variants)
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = Console()
    console.print("median TTFT; ratio: best stock variant over this one, above 1 is faster", highlight=False)
    console.print(table, highlight=False)
