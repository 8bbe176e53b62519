# SPDX-License-Identifier: Apache-2.0
"""From answers to the rows of the result: one per variant and length, against stock at the same length."""

from typing import Any

import msgspec
import numpy as np

from quality.bootstrap import Interval, nll_difference, task_differences
from quality.sampling import Sample, median_ttft_ms
from quality.variants import DENSE, Variant
from quality.verdict import Verdict, choose, counted_tasks, judge
from shplb.plan import ServingPlan
from shplb.quality.candidates import computed_density


def row_of(
    variant: Variant, plan: ServingPlan | None, tokens: int, sample: Sample, dense: Sample, twin: Sample | None = None
) -> dict[str, Any]:
    """Scores, differences to ``dense`` with their intervals, density, time and verdict; of several ranks also those to
    ``twin``, the same on one.
    """
    counted = counted_tasks(dense.scores)
    row: dict[str, Any] = {
        "name": variant.name,
        "tokens": tokens,
        "scores": {task: round(100 * float(np.mean(values)), 2) for task, values in sample.scores.items()},
        "nll": round(float(np.concatenate(list(sample.nll.values())).mean()), 5),
        "ttft_ms": median_ttft_ms(sample),
        "ttfts_ms": [round(ms, 3) for ms in sample.ttft_ms],
        "sampling_s": round(sample.wall_s, 1),
        "multi_turn_cached": list(sample.cached_tokens),
        "prompt_scores": sample.scores,
        "window_nll": {name: [round(x, 5) for x in values] for name, values in sample.nll.items()},
    }
    if variant.is_stock:
        return row | {"computed_density": 1.0, "counted_tasks": counted}
    nats, percent = nll_difference(sample.nll, dense.nll)
    shown = {task: sample.scores[task] for task in counted}
    differences = task_differences(shown, {task: dense.scores[task] for task in counted}) if counted else None
    verdict = judge(differences, percent, {task: len(values) for task, values in shown.items()})
    row |= {
        "budgets": variant.budgets,
        "policy": variant.policy,
        "asked_density": plan.density if plan else None,
        "computed_density": computed_density(plan, tokens) if plan else None,
        "measured_density": sample.path["density"],
        "sparse_steps": sample.path["sparse_steps"],
        "dense_steps": sample.path["dense_steps"],
        "nll_over_dense": plain(nats),
        "nll_over_dense_percent": plain(percent),
        "verdict": msgspec.to_builtins(verdict),
    }
    if differences:
        row["mean_delta"] = plain(differences.mean)
        row["worst_delta"] = plain(differences.worst) | {"task": differences.worst_task}
        row["task_deltas"] = {task: plain(each) for task, each in differences.tasks.items()}
    if twin is not None:
        row |= over_twin(sample, twin, counted)
    return row


def over_twin(sample: Sample, twin: Sample, counted: list[str]) -> dict[str, Any]:
    """Differences to the same variant on one rank, and the share of replies that are the same to the letter."""
    replies = [(reply, other) for task in sample.replies for reply, other in
               zip(sample.replies[task], twin.replies[task], strict=True)]  # fmt: skip
    found = {
        "nll_over_one_rank_percent": plain(nll_difference(sample.nll, twin.nll)[1]),
        "same_replies": round(float(np.mean([reply == other for reply, other in replies])), 4) if replies else None,
    }
    if counted:
        scores = ({task: each.scores[task] for task in counted} for each in (sample, twin))
        found["mean_over_one_rank"] = plain(task_differences(*scores).mean)
    return found


def plain(interval: Interval) -> dict[str, float]:
    return {name: round(value, 5) for name, value in msgspec.structs.asdict(interval).items()}


def chosen_densities(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Per length, the variant of least density that meets the rule below 0.5, or "dense"."""
    found = {}
    for tokens in sorted({row["tokens"] for row in rows}):
        here = [row for row in rows if row["tokens"] == tokens and row["name"] != DENSE]
        verdicts = {row["name"]: msgspec.convert(row["verdict"], Verdict) for row in here}
        found[str(tokens)] = choose(verdicts, {row["name"]: row["measured_density"] for row in here}) or DENSE
    return found


def table_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Header and one line per row."""
    header = ["tokens", "variant", "density", "mean score delta", "worst task delta", "NLL %", "TTFT ms", "rule"]
    lines = [header]
    for row in sorted(rows, key=lambda row: (row["tokens"], row["name"] != DENSE, row["name"])):
        ttft = "-" if row["ttft_ms"] is None else f"{row['ttft_ms']:.0f}"
        if row["name"] == DENSE:
            counted = row["counted_tasks"]
            mean = f"{np.mean([row['scores'][task] for task in counted]):.1f}" if counted else "-"
            lines.append([str(row["tokens"]), DENSE, "1", f"{mean} of {len(counted)} tasks", "", "", ttft, ""])
            continue
        worst = row.get("worst_delta")
        lines.append([
            str(row["tokens"]), row["name"], f"{row['measured_density']:.3f}",
            _shown(row["mean_delta"]) if worst else "-", f"{_shown(worst)} {worst['task']}" if worst else "-",
            _shown(row["nll_over_dense_percent"]), ttft,
            ("met, proven" if row["verdict"]["proven"] else "met") if row["verdict"]["meets"] else "not met",
        ])  # fmt: skip
    return lines


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['value']:+.2f} [{interval['low']:+.2f}, {interval['high']:+.2f}]"
