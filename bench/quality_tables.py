# SPDX-License-Identifier: Apache-2.0
"""Tables of quality: of served variants, of densities beside their speed, of page selection beside a perfect one."""

from collections.abc import Sequence
from typing import Any

from markdown_tables import markdown_table
from quality.variants import split_ranks
from speed_tables import POLICY_NAMES

_BUDGETS = {
    "dense": "dense (stock SGLang)",
    "uniform": "uniform",
    "max_min": "max-min recovery (the paper)",
    "min_error": "least output error (default)",
}


def rows_of(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, lengths ascending, stock first; ValueError for runs of different models or devices."""
    if len(found := {(result["model"], result["device"]) for result in results}) > 1:
        raise ValueError(f"results of {found} can't be shown as one; give those of one model on one kind of GPU.")
    rows = [row for result in results for row in result["rows"]]
    return sorted(rows, key=lambda row: (row["tokens"], row["name"] != "dense"))


def quality_table(*results: dict[str, Any]) -> str:
    """Differences to dense with 95 % intervals, and what the rule says, per length."""
    where = f"{results[0]['model']}, {results[0]['device']}"
    header = (
        where, "computed density", "mean score over dense", "worst task over dense", "NLL over dense", "rule", "TTFT"
    )  # fmt: skip
    lines = []
    for row in rows_of(results):
        if row["name"] == "dense":
            counted = row["counted_tasks"]
            mean = sum(row["scores"][task] for task in counted) / max(len(counted), 1)
            what = f"scores {mean:.1f} in {len(counted)} of {len(row['scores'])} tasks"
            lines.append((f"{row['tokens']} tokens: dense (stock SGLang)", "1", what, "", "", "", _ttft(row)))
            continue
        name = variant_name(row)
        mean, worst = (_interval(row.get(key), "") for key in ("mean_delta", "worst_delta"))
        worst += f" ({row['worst_delta']['task']})" if "worst_delta" in row else ""
        nll = _interval(row["nll_over_dense_percent"], " %")
        rule = "met" if row["verdict"]["meets"] else "not met"
        what = f"{row['tokens']} tokens: {name}"
        lines.append((what, f"{row['measured_density']:.3f}", mean, worst, nll, rule, _ttft(row)))
    return markdown_table(header, lines)


def _ttft(row: dict[str, Any]) -> str:
    return "-" if row["ttft_ms"] is None else f"{row['ttft_ms']:.0f} ms"


_TAIL = 128


def tail_quality_table(*results: dict[str, Any]) -> str:
    """What a dense tail gives at one density."""
    named = {"dense": "all (stock SGLang)", "shplb@0.1": "0 tokens", f"shplb,tail={_TAIL}@0.1": f"{_TAIL} tokens"}
    header = (
        f"{results[0]['model']}, dense tail",
        "computed density",
        "mean score over dense",
        "multi_turn",
        "NLL over dense",
    )
    lines = []
    for row in rows_of(results):
        if row["name"] not in named:
            continue
        what, score = f"{row['tokens']} tokens: {named[row['name']]}", f"{row['scores']['multi_turn']:.1f}"
        if row["name"] == "dense":
            lines.append((what, "1", "", score, ""))
            continue
        nll = _interval(row["nll_over_dense_percent"], " %")
        lines.append((what, f"{row['measured_density']:.3f}", _interval(row["mean_delta"], ""), score, nll))
    return markdown_table(header, lines)


def tail_speed_table(result: dict[str, Any]) -> str:
    """What a dense tail costs: medians of the time to the first token."""
    of = {
        (row["variant"], row["input_tokens"]): row["ttft_p50_ms"] for row in result["rows"] if "new_tokens" not in row
    }
    where = f"{result['arguments']['shape']}, TP {result['arguments']['tp']}, {result['device']}, prompt tokens"
    header = where, "stock SGLang (fa3)", "no tail", f"tail of {_TAIL} tokens"
    lengths = sorted({tokens for _, tokens in of})
    variants = "fa3", "shplb-no-tail", "shplb"
    return markdown_table(
        header, [(f"{tokens}", *(f"{of[variant, tokens]:.0f} ms" for variant in variants)) for tokens in lengths]
    )


def trade_table(simulation: dict[str, Any], *quality: dict[str, Any]) -> str:
    """What a prompt is predicted to take at a density, beside what that density loses on a model."""
    prompt = simulation["longest_prompt"]
    times = {row["density"]: row["predicted_ms"] for row in prompt["rows"]}
    rows = rows_of(quality)
    tokens = rows[-1]["tokens"]
    takes, where = f"{prompt['prompt_tokens']} tokens take", f"{quality[0]['model']} at {tokens}"
    header = "density", takes, "times faster", f"{where}: NLL over dense", "mean score over dense"
    lines = [("1 (stock)", f"{prompt['stock_ms']:.0f} ms", "", "", "")]
    for row in rows:
        name, ranks = split_ranks(row["name"])
        ms = times.get(float(name.removeprefix("shplb@"))) if name.startswith("shplb@") and not ranks else None
        if ms is not None and row["tokens"] == tokens:
            nll, mean = _interval(row["nll_over_dense_percent"], " %"), _interval(row.get("mean_delta"), "")
            faster = f"{prompt['stock_ms'] / ms:.2f}"
            lines.append((row["name"].removeprefix("shplb@"), f"{ms:.0f} ms", faster, nll, mean))
    return markdown_table(header, lines)


def variant_name(row: dict[str, Any]) -> str:
    """What chooses pages, in words where there are some; budgets are named where a policy has not its own."""
    name, ranks = split_ranks(row["name"])
    what, *changes = name.rpartition("@")[0].split(",")
    named = POLICY_NAMES.get(what) or _BUDGETS.get(what) or what
    parts = [named, *(change.replace("=", " ") for change in changes)]
    return ", ".join([*parts, f"{ranks} ranks"] if ranks else parts)


def _interval(found: dict[str, float] | None, unit: str) -> str:
    return f"{found['value']:+.2f}{unit} [{found['low']:+.2f}, {found['high']:+.2f}]" if found else "-"


def selection_table(result: dict[str, Any]) -> str:
    """What equally long page lists recover and lose, by score."""
    where = f"{result['model']}, {result['tokens']} tokens at {result['computed_density']:.3f}"
    header = where, "recovered mass", "of the oracle's", "in the worst layer", "output error", "NLL over dense"
    lines = []
    for row in result["rows"]:
        nll = f"{row['nll_over_dense']:+.4f} ± {row['nll_over_dense_stderr']:.4f}"
        shares = (f"{row[key]:.3f}" for key in ("recovered_of_oracle", "least_recovered_of_oracle"))
        lines.append((f"`{row['score']}`", f"{row['recovered_mass']:.3f}", *shares, f"{row['output_error']:.3f}", nll))
    return markdown_table(header, lines)
