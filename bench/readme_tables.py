# SPDX-License-Identifier: Apache-2.0
"""Write tables of README.md and docs from bench/results/*.json, between markers. ``--check`` only compares."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from speed_tables import (
    POLICY_NAMES,
    attention_table,
    balance_table,
    concurrency_table,
    line,
    policies_table,
    prompt_text,
    serving_table,
    shapes_table,
)  # fmt: skip

# Of which results a table is, where its name does not say so.
_FILES = {"shapes": ["attention"], "trade": ["simulation", "quality"]}
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

_BUDGETS = {
    "dense": "dense (stock SGLang)",
    "uniform": "uniform",
    "max_min": "max-min recovery (the paper)",
    "min_error": "least output error (default)",
}

_SCHEDULED_STEPS = {
    "chunk_8192_on_122880": "whole plan of a step: 8192 tokens after 122880, 32 layers, 16 query heads",
    "whole_131072": "the same, 131072 tokens at once",
    "decode_256_requests_80_layers": "rank loads of a decode step, 256 requests, 80 layers",
}
_WORK_ITEMS = 4096
_SLOTS = {
    "contiguous": "contiguous",
    "placed": "placed",
    "uneven": "placed, uneven counts",
    "replicas": "placed, `--replicas 1`",
}
_PLACED = ((8, 2), (32, 8), (64, 8))


def quality_table(result: dict[str, Any]) -> str:
    """Differences to dense with 95 % intervals, and what the rule says, per length."""
    lines = [
        f"| {result['model']}, {result['device']} | computed density | mean score over dense | worst task over dense "
        "| NLL over dense | rule |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["tokens"], row["name"] != "dense")):
        if row["name"] == "dense":
            counted = row["counted_tasks"]
            mean = sum(row["scores"][task] for task in counted) / max(len(counted), 1)
            what = f"scores {mean:.1f} in {len(counted)} of {len(row['scores'])} tasks"
            lines.append(f"| {row['tokens']} tokens: dense (stock SGLang) | 1 | {what} | | | |")
            continue
        name = variant_name(row)
        mean, worst = (_interval(row.get(key), "") for key in ("mean_delta", "worst_delta"))
        worst += f" ({row['worst_delta']['task']})" if "worst_delta" in row else ""
        nll = _interval(row["nll_over_dense_percent"], " %")
        rule = "met" if row["verdict"]["meets"] else "not met"
        cells = (f"{row['tokens']} tokens: {name}", f"{row['measured_density']:.3f}", mean, worst, nll, rule)
        lines.append(line(*cells))
    return "\n".join(lines)


def trade_table(simulation: dict[str, Any], quality: dict[str, Any]) -> str:
    """What a prompt is predicted to take at a density, beside what that density loses on a model."""
    prompt = simulation["longest_prompt"]
    times = {row["density"]: row["predicted_ms"] for row in prompt["rows"]}
    tokens = max(row["tokens"] for row in quality["rows"])
    where = f"{quality['model']} at {tokens}"
    lines = [
        f"| density | {prompt['prompt_tokens']} tokens take | times faster | {where}: NLL over dense "
        "| mean score over dense |",
        "|---|---|---|---|---|",
        line("1 (stock)", f"{prompt['stock_ms']:.0f} ms", "", "", ""),
    ]
    for row in quality["rows"]:
        ms = times.get(float(row["name"].rpartition("@")[2])) if row["name"].startswith("shplb@") else None
        if ms is not None and row["tokens"] == tokens:
            nll, mean = _interval(row["nll_over_dense_percent"], " %"), _interval(row.get("mean_delta"), "")
            faster = f"{prompt['stock_ms'] / ms:.2f}"
            lines.append(line(row["name"].removeprefix("shplb@"), f"{ms:.0f} ms", faster, nll, mean))
    return "\n".join(lines)


def variant_name(row: dict[str, Any]) -> str:
    """What chooses pages, in words where there are some; budgets are named where a policy has not its own."""
    what, *changes = row["name"].rpartition("@")[0].split(",")
    named = POLICY_NAMES.get(what) or _BUDGETS.get(what) or what
    return ", ".join([named, *(change.replace("=", " ") for change in changes)])


def _interval(found: dict[str, float] | None, unit: str) -> str:
    return f"{found['value']:+.2f}{unit} [{found['low']:+.2f}, {found['high']:+.2f}]" if found else "-"


def replicas_table(result: dict[str, Any]) -> str:
    """Imbalance and predicted attention time of one prompt, by TP size and placement, beside the price."""
    lines = [
        f"| simulated, {result['tokens']} tokens | imbalance | attention | KV memory per rank |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["heads"] != "uneven":
            lines.append(line(*_predicted(row), f"x{row['kv_memory_factor']:.2f}"))
    return "\n".join(lines)


def uneven_table(result: dict[str, Any]) -> str:
    """The same beside uneven counts of KV groups, with all prices."""
    lines = [
        f"| predicted, {result['tokens']} tokens, heads of {result['arguments']['profile_name']} | imbalance "
        "| attention | KV memory per rank | with a width for every layer | decoding reads |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        keys = ("kv_memory_factor", "kv_memory_factor_by_layer", "decode_factor")
        lines.append(line(*_predicted(row), *(f"x{row[key]:.2f}" for key in keys)))
    return "\n".join(lines)


def _predicted(row: dict[str, Any]) -> tuple[str, str, str]:
    """Of the replica bench: which, imbalance, attention."""
    return f"TP {row['tp_size']}: {_SLOTS[row['heads']]}", f"{row['imbalance']:.2f}", f"{row['attention_ms']:.0f} ms"


def scheduler_table(result: dict[str, Any]) -> str:
    """Medians of the core's routines."""
    lines = [f"| one thread, {result['machine']['note']} | median |", "|---|---|"]
    for row in result["steps"]:
        lines.append(f"| {_SCHEDULED_STEPS[row['step']]} | {row['median_us']:.0f} µs |")
    for row in result["work_plan"]:
        if row["num_items"] == _WORK_ITEMS and row["lengths"] == "heads":
            auto, theirs = row["auto"]["median_us"], row["flashinfer_algorithm"]["median_us"]
            lines.append(f"| work plan of {_WORK_ITEMS} items | {auto:.0f} µs |")
            lines.append(f"| the same by FlashInfer's algorithm | {theirs:.0f} µs |")
    python = result["flashinfer_python_part"]
    lines.append(f"| `plan()` of FlashInfer's wrapper, {python['num_lists']} lists | {python['median_us']:.0f} µs |")
    for row in result["placement"]:
        if row["loads"] == "lognormal" and (row["num_units"], row["num_ranks"]) in _PLACED:
            what = f"placing {row['num_units']} KV groups on {row['num_ranks']} ranks, a layer"
            lines.append(f"| {what} | {row['auto']['us_per_layer']:.1f} µs |")
    return "\n".join(lines)


def simulation_table(result: dict[str, Any]) -> str:
    """Predicted and measured time to first token of S-HPLB, its other costs fitted to stock SGLang's rows."""
    lines = [
        f"| prompt tokens, S-HPLB, {len(result['measured']['gpus'])} x {result['measured']['device']} | measured "
        "| predicted | off |",
        "|---|---|---|---|",
    ]
    for row in result["from_stock"]["rows"]:
        new, cached = row["prompt_tokens"] - row["cached_tokens"], row["cached_tokens"]
        what = prompt_text(new, cached)
        lines.append(f"| {what} | {row['ttft_ms']:.0f} ms | {row['predicted_ms']:.0f} ms | {row['off']:+.0%} |")
    return "\n".join(lines)


TABLES = {
    README: {
        "trade": trade_table,
        "quality": quality_table,
        "serving": serving_table,
        "concurrency": concurrency_table,
        "attention": attention_table,
        "shapes": shapes_table,
        "policies": policies_table,
        "balance": balance_table,
        "scheduler": scheduler_table,
        "replicas": replicas_table,
    },
    ROOT / "docs" / "algorithms.md": {"simulation": simulation_table, "replicas": uneven_table},
}


def render(path: Path) -> str:
    """The text of ``path`` with every marked table replaced; ValueError when a marker is missing."""
    text = path.read_text()
    for name, table in TABLES[path].items():
        begin, end = f"<!-- table: {name} -->\n", f"\n<!-- end: {name} -->"
        head, _, rest = text.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise ValueError(
                f"{path.name} lacks the markers of table '{name}'; put '{begin.strip()}' and '{end.strip()}'."
            )
        results = [json.loads((RESULTS / f"{file}.json").read_text()) for file in _FILES.get(name, [name])]
        text = head + begin + table(*results) + end + tail
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for path in TABLES:
        made = render(path)
        if check and made != path.read_text():
            sys.exit(f"{path.name} differs from bench/results: run python bench/readme_tables.py")
        if not check:
            path.write_text(made)


if __name__ == "__main__":
    main()
