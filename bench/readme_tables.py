# SPDX-License-Identifier: Apache-2.0
"""Write tables of README.md and docs from bench/results/*.json, between markers. ``--check`` only compares."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shplb.step_fit import bench_ttft_ms

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

_STEPS = ("whole-131072", "chunk-8192-on-122880")
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
_PARTS = ("attention_ms", "select_ms", "ms")
_POLICIES = {
    "policy shplb": "S-HPLB",
    "policy streaming_llm": "as StreamingLLM",
    "policy minference": "as MInference",
    "policy xattention": "as XAttention",
    "policy flexprefill": "as FlexPrefill",
}
_SLOTS = {
    "contiguous": "contiguous",
    "placed": "placed",
    "uneven": "placed, uneven counts",
    "replicas": "placed, `--replicas 1`",
}
_PLACED = ((8, 2), (32, 8), (64, 8))
_PLACEMENTS = {"shplb-contiguous": "where stock shards them", "shplb": "as placed"}


def quality_table(result: dict[str, Any]) -> str:
    """Differences to dense with 95 % intervals, and what the rule says, per length."""
    if "format" not in result:
        return first_quality_table(result)
    lines = [
        f"| {result['model']}, {result['device']} | computed density | mean score over dense | worst task over dense "
        "| NLL over dense | TTFT | rule |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(result["rows"], key=lambda row: (row["tokens"], row["name"] != "dense")):
        ttft = "" if row["ttft_ms"] is None else f"{row['ttft_ms']:.0f} ms"
        if row["name"] == "dense":
            counted = row["counted_tasks"]
            mean = sum(row["scores"][task] for task in counted) / max(len(counted), 1)
            what = f"scores {mean:.1f} in {len(counted)} of {len(row['scores'])} tasks"
            lines.append(f"| {row['tokens']} tokens: dense (stock SGLang) | 1 | {what} | | | {ttft} | |")
            continue
        name = variant_name(row)
        mean, worst = (_interval(row.get(key), "") for key in ("mean_delta", "worst_delta"))
        worst += f" ({row['worst_delta']['task']})" if "worst_delta" in row else ""
        nll = _interval(row["nll_over_dense_percent"], " %")
        rule = "met" if row["verdict"]["meets"] else "not met"
        cells = (f"{row['tokens']} tokens: {name}", f"{row['measured_density']:.3f}", mean, worst, nll, ttft, rule)
        lines.append(_line(*cells))
    return "\n".join(lines)


def variant_name(row: dict[str, Any]) -> str:
    """What chooses pages, in words where there are some; budgets are named where a policy has not its own."""
    what = row["name"].rpartition("@")[0]
    return _BUDGETS.get(what) or _POLICIES.get(f"policy {what}") or what


def _interval(found: dict[str, float] | None, unit: str) -> str:
    return f"{found['value']:+.2f}{unit} [{found['low']:+.2f}, {found['high']:+.2f}]" if found else "-"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _step(name: str) -> str:
    """Of the attention bench: "chunk-8192-on-122880" in words."""
    kind, length = name.split("-", 1)
    return {"whole": f"{length} tokens", "chunk": f"chunk of {length.replace('-on-', ' after ')}"}[kind]


def _prompt(new: int, cached: int) -> str:
    return f"{new} after {cached} cached" if cached else f"{new}"


def first_quality_table(result: dict[str, Any]) -> str:
    """Of results before RULER's tasks: NLL over dense with paired standard errors, retrieval answers."""
    lines = [
        f"| budgets, {result['model']}, {result['tokens']} tokens | computed density | text NLL over dense "
        "| answers right | answer NLL over dense |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        dense = row["name"] == "dense"
        density = "1" if dense else f"{row['measured_density']:.3f}"
        text = "0" if dense else f"{row['text_nll_over_dense']:+.4f} ± {row['text_nll_stderr']:.4f}"
        answer = "0" if dense else f"{row['answer_nll_over_dense']:+.4f}"
        name = _BUDGETS[row.get("objective", "dense")]
        lines.append(f"| {name} | {density} | {text} | {row['answers_right']} of {row['answers']} | {answer} |")
    return "\n".join(lines)


def serving_table(result: dict[str, Any]) -> str:
    """Time to first token of stock and S-HPLB at one client."""
    rows = [row for row in result["rows"] if row["concurrency"] == 1]
    points = {(row["variant"], row["input_tokens"], row.get("new_tokens")): row for row in rows}
    stock = next(row["variant"] for row in result["rows"] if not row["variant"].startswith("shplb"))
    lines = [
        f"| prompt tokens, {len(result['gpus'])} x {result['device']} | stock ({stock}) | S-HPLB | times faster "
        "| attention computed |",
        "|---|---|---|---|---|",
    ]
    for (variant, tokens, new), row in points.items():
        if variant != "shplb":
            continue
        theirs, ours = bench_ttft_ms(points[stock, tokens, new]), bench_ttft_ms(row)
        what = _prompt(tokens if new is None else new, row.get("cached_tokens", 0))
        lines.append(f"| {what} | {theirs:.0f} ms | {ours:.0f} ms | {theirs / ours:.2f} | {row['density']:.3f} |")
    return "\n".join(lines)


def attention_table(result: dict[str, Any]) -> str:
    """One layer's attention: dense, ours, and what ours would be without the balance inside the GPU."""
    lines = [
        f"| one layer, 16 query and 4 KV heads, {result['device']} | density | attention | page selection | together "
        "| TFLOP/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["results"]:
        other = "KV group" in row["variant"] or row["variant"].startswith("policy ")
        if row["step"] not in _STEPS or "note" in row or other:
            continue
        attention = f"{row.get('attention_ms', row.get('ms')):.2f} ms"
        select, both = (f"{row[key]:.2f} ms" if "select_ms" in row else "" for key in ("select_ms", "ms"))
        cells = (
            f"{_step(row['step'])}: {row['variant']}",
            f"{row['density']:.3g}",
            attention,
            select,
            both,
            f"{row['tflops']:.0f}",
        )
        lines.append(_line(*cells))
    return "\n".join(lines)


def replicas_table(result: dict[str, Any]) -> str:
    """Imbalance and predicted attention time of one prompt, by TP size and placement, beside the price."""
    lines = [
        f"| simulated, {result['tokens']} tokens | imbalance | attention | KV memory per rank |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["heads"] != "uneven":
            lines.append(_line(*_predicted(row), f"x{row['kv_memory_factor']:.2f}"))
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
        lines.append(_line(*_predicted(row), *(f"x{row[key]:.2f}" for key in keys)))
    return "\n".join(lines)


def _predicted(row: dict[str, Any]) -> tuple[str, str, str]:
    """Of the replica bench: which, imbalance, attention."""
    return f"TP {row['tp_size']}: {_SLOTS[row['heads']]}", f"{row['imbalance']:.2f}", f"{row['attention_ms']:.0f} ms"


def policies_table(result: dict[str, Any]) -> str:
    """Rivals' ways to choose pages at equal computed density, over the same kernel."""
    lines = [
        f"| one layer at density {result['arguments']['densities']}, 16 query and 4 KV heads, {result['device']} "
        "| attention | selection | together | dense fa3 takes |",
        "|---|---|---|---|---|",
    ]
    rows = [row for row in result["results"] if row["shape"] == "llama-8b-tp2"]
    dense = {row["step"]: row["ms"] for row in rows if row["variant"].startswith("dense fa3")}
    for row in rows:
        if row["variant"] not in _POLICIES:
            continue
        times = f"{dense[row['step']] / row['ms']:.1f} times as long"
        cells = (f"{_step(row['step'])}: {_POLICIES[row['variant']]}", *(f"{row[key]:.2f} ms" for key in _PARTS), times)
        lines.append(_line(*cells))
    return "\n".join(lines)


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


def balance_table(result: dict[str, Any]) -> str:
    """What two ranks wait for each other, timed on the GPUs."""
    lines = [
        f"| heads, {result['rows'][0]['input_tokens']} tokens, {len(result['gpus'])} x {result['device']} "
        "| predicted max/mean load | attention time spent waiting |",
        "|---|---|---|",
    ]
    for server in result["servers"]:
        bubble = f"{100 * server['measured_bubble']:.1f} %"
        lines.append(f"| {_PLACEMENTS[server['variant']]} | {server['imbalance']:.3f} | {bubble} |")
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
        what = _prompt(new, cached)
        lines.append(f"| {what} | {row['ttft_ms']:.0f} ms | {row['predicted_ms']:.0f} ms | {row['off']:+.0%} |")
    return "\n".join(lines)


TABLES = {
    README: {
        "quality": quality_table,
        "serving": serving_table,
        "attention": attention_table,
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
        text = head + begin + table(json.loads((RESULTS / f"{name}.json").read_text())) + end + tail
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
