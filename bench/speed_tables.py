# SPDX-License-Identifier: Apache-2.0
"""Tables of README.md about times on GPUs, as Markdown, from results of the benches."""

from typing import Any

from markdown_tables import markdown_table

from shplb.step_fit import bench_ttft_ms

#: Of SHAPES in bench_attention.py: what two ranks of Llama-3.1-8B have each.
_SHAPE = "llama-8b-tp2"
_DENSITY = 0.10
_STEPS = ("whole-131072", "chunk-8192-on-122880")
_PARTS = ("attention_ms", "select_ms", "ms")
_SHAPES = {
    "llama-8b-tp1": "Llama-3.1-8B, one GPU",
    "llama-8b-tp2": "Llama-3.1-8B, two GPUs",
    "qwen2.5-7b-tp1": "Qwen2.5-7B, one GPU",
}
_PLACEMENTS = {
    "shplb-contiguous": "where stock shards them",
    "shplb": "as placed",
    "shplb-replicas": "as placed, `--replicas 1`",
}

POLICY_NAMES = {
    "shplb": "S-HPLB",
    "streaming_llm": "as StreamingLLM",
    "minference": "as MInference",
    "xattention": "as XAttention",
    "flexprefill": "as FlexPrefill",
}


def step_text(name: str) -> str:
    """Of the attention bench: "chunk-8192-on-122880" in words."""
    kind, length = name.split("-", 1)
    return {"whole": f"{length} tokens", "chunk": f"chunk of {length.replace('-on-', ' after ')}"}[kind]


def prompt_text(new: int, cached: int) -> str:
    return f"{new} after {cached} cached" if cached else f"{new}"


def serving_table(result: dict[str, Any]) -> str:
    """Time to first token of stock and S-HPLB at one client."""
    rows = [row for row in result["rows"] if row["concurrency"] == 1]
    points = {(row["variant"], row["input_tokens"], row.get("new_tokens")): row for row in rows}
    stock = next(row["variant"] for row in result["rows"] if not row["variant"].startswith("shplb"))
    where = f"prompt tokens, {len(result['gpus'])} x {result['device']}"
    cells = []
    for (variant, tokens, new), row in points.items():
        if variant != "shplb":
            continue
        theirs, ours = bench_ttft_ms(points[stock, tokens, new]), bench_ttft_ms(row)
        what = prompt_text(tokens if new is None else new, row.get("cached_tokens", 0))
        cells.append((what, f"{theirs:.0f} ms", f"{ours:.0f} ms", f"{theirs / ours:.2f}", f"{row['density']:.3f}"))
    return markdown_table((where, f"stock ({stock})", "S-HPLB", "times faster", "attention computed"), cells)


def concurrency_table(result: dict[str, Any]) -> str:
    """Several clients at a time: median time to the first token, and prompt tokens per second of all together."""
    rows = [row for row in result["rows"] if row["concurrency"] > 1]
    stock = {(row["input_tokens"], row["concurrency"]): row for row in rows if row["variant"] != "shplb"}
    where = f"prompt tokens, clients, {len(result['gpus'])} x {result['device']}"
    cells = []
    for row in rows:
        if row["variant"] == "shplb":
            both = stock[row["input_tokens"], row["concurrency"]], row
            times = [f"{each['ttft_p50_ms']:.0f} ms" for each in both]
            rates = [f"{each['input_tokens_per_s']:.0f}" for each in both]
            cells.append((f"{row['input_tokens']}, {row['concurrency']}", *times, *rates))
    return markdown_table((where, "stock", "S-HPLB", "stock, tokens/s", "S-HPLB, tokens/s"), cells)


def attention_table(result: dict[str, Any]) -> str:
    """One layer's attention: dense, ours, and what ours would be without the balance inside the GPU."""
    where = f"one layer, 16 query and 4 KV heads, {result['device']}"
    lines = []
    for row in result["results"]:
        if row["shape"] != _SHAPE or not _is_shown(row["density"]):
            continue
        other = "KV group" in row["variant"] or row["variant"].startswith("policy ")
        if row["step"] not in _STEPS or "note" in row or other:
            continue
        attention = f"{row.get('attention_ms', row.get('ms')):.2f} ms"
        select, both = (f"{row[key]:.2f} ms" if "select_ms" in row else "" for key in ("select_ms", "ms"))
        what, density = f"{step_text(row['step'])}: {row['variant']}", f"{row['density']:.3g}"
        lines.append((what, density, attention, select, both, f"{row['tflops']:.0f}"))
    return markdown_table((where, "density", "attention", "page selection", "together", "TFLOP/s"), lines)


def _is_shown(density: float) -> bool:
    """Dense, or near the density of the README's tables."""
    return density == 1.0 or abs(density / _DENSITY - 1.0) < 0.01


def shapes_table(result: dict[str, Any]) -> str:
    """Selection and attention of one layer by shape and density, and how many times as long dense fa3 takes."""
    densities = [float(text) for text in result["arguments"]["densities"].split(",") if float(text) < 1.0]
    where = f"one layer, {result['device']}, ms (times faster than fa3)"
    lines = []
    for shape, step in dict.fromkeys((row["shape"], row["step"]) for row in result["results"]):
        rows = [row for row in result["results"] if (row["shape"], row["step"]) == (shape, step)]
        dense = next(row["ms"] for row in rows if row["variant"].startswith("dense fa3"))
        ours = [row["ms"] for row in rows if row["variant"] == "ours" and row["density"] < 1.0]
        cells = [f"{ms:.2f} ({dense / ms:.1f})" for ms in ours]
        lines.append((f"{_SHAPES[shape]}: {step_text(step)}", f"{dense:.2f}", *cells))
    return markdown_table((where, "dense fa3", *(f"density {density:g}" for density in densities)), lines)


def policies_table(result: dict[str, Any]) -> str:
    """Rivals' ways to choose pages at equal computed density, over the same kernel."""
    where = f"one layer at density {result['arguments']['densities']}, 16 query and 4 KV heads, {result['device']}"
    lines = []
    rows = [row for row in result["results"] if row["shape"] == _SHAPE]
    dense = {row["step"]: row["ms"] for row in rows if row["variant"].startswith("dense fa3")}
    for row in rows:
        name = POLICY_NAMES.get(row["variant"].removeprefix("policy "))
        if name is None:
            continue
        times = f"{dense[row['step']] / row['ms']:.1f} times as long"
        lines.append((f"{step_text(row['step'])}: {name}", *(f"{row[key]:.2f} ms" for key in _PARTS), times))
    return markdown_table((where, "attention", "selection", "together", "dense fa3 takes"), lines)


def balance_table(result: dict[str, Any]) -> str:
    """What two ranks wait for each other, timed on the GPUs, and what a prompt takes."""
    return markdown_table(_balance_header(result), _balance_lines(result))


def balance_by_density(*results: dict[str, Any]) -> str:
    """The same of several densities."""
    lines = [
        (f"density {result['arguments']['density']:g}: {words}", *cells)
        for result in results for words, *cells in _balance_lines(result)
    ]  # fmt: skip
    return markdown_table(_balance_header(results[0]), lines)


def _balance_header(result: dict[str, Any]) -> tuple[str, ...]:
    where = f"heads of {result['arguments']['shape']}, {len(result['gpus'])} x {result['device']}"
    header = where, "predicted max/mean load", "attention time spent waiting", "prediction over measurement"
    return (*header, f"{_longest(result)} tokens take")


def _balance_lines(result: dict[str, Any]) -> list[tuple[str, ...]]:
    ttft = {row["variant"]: row["ttft_p50_ms"] for row in result["rows"] if row["input_tokens"] == _longest(result)}
    servers, lines = {server["variant"]: server for server in result["servers"]}, []
    for name, words in _PLACEMENTS.items():
        if name not in servers:
            continue
        server = servers[name]
        cells = f"{server['imbalance']:.3f}", f"{100 * server['measured_bubble']:.1f} %"
        lines.append((words, *cells, f"{server['predicted_over_measured']:.2f}", f"{ttft[name]:.0f} ms"))
    return lines


def _longest(result: dict[str, Any]) -> int:
    return max(row["input_tokens"] for row in result["rows"])
