# SPDX-License-Identifier: Apache-2.0
"""Write tables of README.md and docs from bench/results/*.json, between markers. ``--check`` only compares."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from markdown_tables import markdown_table
from quality_tables import quality_table, selection_table, tail_quality_table, tail_speed_table, trade_table
from speed_tables import (
    attention_table,
    balance_by_density,
    balance_table,
    concurrency_table,
    policies_table,
    prompt_text,
    serving_table,
    shapes_table,
)  # fmt: skip

#: Results of the quality bench, by length.
QUALITY = ["quality", "quality_32k"]
# Of which results a table is, where its name does not say so.
_FILES = {
    "shapes": ["attention"],
    "trade": ["simulation", *QUALITY],
    "quality": QUALITY,
    "quality_tail": QUALITY,
    "profile": ["profile", "profile_qwen2.5-7b"],
    "balance_one_group": ["balance_qwen2.5-3b", "balance_qwen2.5-3b_0.45"],
}
ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

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


def replicas_table(result: dict[str, Any]) -> str:
    """Imbalance and predicted attention time of one prompt, by TP size and placement, beside the price."""
    header = f"simulated, {result['tokens']} tokens", "imbalance", "attention", "KV memory per rank"
    rows = [row for row in result["rows"] if row["heads"] != "uneven"]
    return markdown_table(header, [(*_predicted(row), f"x{row['kv_memory_factor']:.2f}") for row in rows])


def uneven_table(result: dict[str, Any]) -> str:
    """The same beside uneven counts of KV groups, with all prices."""
    where = f"predicted, {result['tokens']} tokens, heads of {result['arguments']['profile_name']}"
    prices = {
        "KV memory per rank": "kv_memory_factor",
        "with a width for every layer": "kv_memory_factor_by_layer",
        "decoding reads": "decode_factor",
    }
    rows = [(*_predicted(row), *(f"x{row[key]:.2f}" for key in prices.values())) for row in result["rows"]]
    return markdown_table((where, "imbalance", "attention", *prices), rows)


def _predicted(row: dict[str, Any]) -> tuple[str, str, str]:
    """Of the replica bench: which, imbalance, attention."""
    return f"TP {row['tp_size']}: {_SLOTS[row['heads']]}", f"{row['imbalance']:.2f}", f"{row['attention_ms']:.0f} ms"


def scheduler_table(result: dict[str, Any]) -> str:
    """Medians of the core's routines."""
    lines = []
    for row in result["steps"]:
        lines.append((_SCHEDULED_STEPS[row["step"]], f"{row['median_us']:.0f} µs"))
    for row in result["work_plan"]:
        if row["num_items"] == _WORK_ITEMS and row["lengths"] == "heads":
            auto, theirs = row["auto"]["median_us"], row["flashinfer_algorithm"]["median_us"]
            lines.append((f"work plan of {_WORK_ITEMS} items", f"{auto:.0f} µs"))
            lines.append(("the same by FlashInfer's algorithm", f"{theirs:.0f} µs"))
    python = result["flashinfer_python_part"]
    lines.append((f"`plan()` of FlashInfer's wrapper, {python['num_lists']} lists", f"{python['median_us']:.0f} µs"))
    for row in result["placement"]:
        if row["loads"] == "lognormal" and (row["num_units"], row["num_ranks"]) in _PLACED:
            what = f"placing {row['num_units']} KV groups on {row['num_ranks']} ranks, a layer"
            lines.append((what, f"{row['auto']['us_per_layer']:.1f} µs"))
    return markdown_table((f"one thread, {result['machine']['note']}", "median"), lines)


def simulation_table(result: dict[str, Any]) -> str:
    """Predicted and measured time to first token of S-HPLB, its other costs fitted to stock SGLang's rows."""
    where = f"prompt tokens, S-HPLB, {len(result['measured']['gpus'])} x {result['measured']['device']}"
    lines = []
    for row in result["from_stock"]["rows"]:
        new, cached = row["prompt_tokens"] - row["cached_tokens"], row["cached_tokens"]
        what = prompt_text(new, cached)
        lines.append((what, f"{row['ttft_ms']:.0f} ms", f"{row['predicted_ms']:.0f} ms", f"{row['off']:+.0%}"))
    return markdown_table((where, "measured", "predicted", "off"), lines)


def profile_table(*results: dict[str, Any]) -> str:
    """What recording curves adds to a dense prefill."""
    header = f"{results[0]['device']}, a document of", "dense", "recording", "added", "GPU memory added"
    lines = []
    for result in results:
        of = {(row["kind"], row["tokens"]): row["seconds"] for row in result["rows"]}
        for row in result["added"]:
            times = (f"{of[kind, row['tokens']]:.2f} s" for kind in ("dense", "recording"))
            added = f"{row['added_share']:.0%}", f"{row['added_gpu_bytes'] / 2**20:.0f} MiB"
            lines.append((f"{row['tokens']} tokens, {result['arguments']['shape']}", *times, *added))
    return markdown_table(header, lines)


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
        "balance_one_group": balance_by_density,
        "scheduler": scheduler_table,
        "replicas": replicas_table,
    },
    ROOT / "docs" / "quality.md": {
        "selection": selection_table,
        "quality_tail": tail_quality_table,
        "serving_tail": tail_speed_table,
    },
    ROOT / "docs" / "algorithms.md": {
        "simulation": simulation_table,
        "replicas": uneven_table,
        "profile": profile_table,
    },
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
