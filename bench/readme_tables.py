# SPDX-License-Identifier: Apache-2.0
"""Write the tables of README.md from bench/results/*.json, between their markers. ``--check`` only compares."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

_BUDGETS = {
    "dense": "dense (stock SGLang)",
    "uniform": "uniform",
    "max_min": "max-min recovery (the paper)",
    "min_error": "least output error (default)",
}


def quality_table(result: dict[str, Any]) -> str:
    """Objectives at equal computed density: NLL over dense with paired standard errors, retrieval answers."""
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


TABLES = {"quality": quality_table}


def render(readme: str) -> str:
    """``readme`` with every marked table replaced; ValueError when a marker is missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", f"\n<!-- end: {name} -->"
        head, _, rest = readme.partition(begin)
        _, found, tail = rest.partition(end)
        if not found:
            raise ValueError(
                f"README.md lacks the markers of table '{name}'; put '{begin.strip()}' and '{end.strip()}'."
            )
        readme = head + begin + table(json.loads((RESULTS / f"{name}.json").read_text())) + end + tail
    return readme


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = README.read_text()
    new = render(old)
    if check and new != old:
        sys.exit("README.md differs from bench/results: run python bench/readme_tables.py")
    if not check:
        README.write_text(new)


if __name__ == "__main__":
    main()
