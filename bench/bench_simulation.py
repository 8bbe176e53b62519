# SPDX-License-Identifier: Apache-2.0
"""Predicted against measured time to first token, from the JSON of bench_serving.py; needs no GPU.

    python bench/bench_simulation.py [--serving bench/results/serving.json]

What a server takes besides attention is fitted to the prompts that stock SGLang served, and prompts under S-HPLB are
judged. A second fit sees stock prompts of up to 8192 new tokens only, and longer ones of both are judged. The longest
prompt is also predicted at densities that were not served. Writes JSON.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from dummy_model import spread_plan, write_dummy_model
from provenance import provenance

from shplb.container import write_atomically
from shplb.plan import ServingPlan
from shplb.simulation import StepCost
from shplb.step_fit import Point, fit_step_cost, is_stock, planner_for, predict_ttft_ms, read_points

_SHORT_TOKENS = 8192
_CHUNK_TOKENS = 8192
_DENSITIES = (0.1, 0.2, 0.35, 0.45)


def served_plan(arguments: dict[str, Any], density: float | None = None) -> ServingPlan:
    """The plan that bench_serving.py drew for these arguments, or would at another density."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_dummy_model(Path(folder), arguments["shape"])
        return spread_plan(
            model, tp_size=arguments["tp"], density=density or arguments["density"], sigma=arguments["sigma"],
            seed=arguments["seed"], group_sigma=arguments.get("group_sigma", 0.0),
        )  # fmt: skip


def judge(plan: ServingPlan, tp_size: int, fitted: list[Point], judged: list[Point]) -> dict[str, Any]:
    """Fit to the first, predict the second."""
    fit = fit_step_cost(plan, fitted, tp_size=tp_size, chunk_tokens=_CHUNK_TOKENS)
    planner = planner_for(plan, judged, tp_size=tp_size)
    rows = []
    for point in judged:
        predicted = predict_ttft_ms(planner, point, fit.cost, "dense" if is_stock(point) else "auto")
        off = round(predicted / point.ttft_ms - 1, 4)
        rows.append(dataclasses.asdict(point) | {"predicted_ms": round(predicted, 2), "off": off})
    return {"fit": dataclasses.asdict(fit), "rows": rows}


def longest_prompt(arguments: dict[str, Any], points: list[Point], cost: StepCost) -> dict[str, Any]:
    """The longest prompt that stock served, by density; ``cost``: what a server takes besides attention."""
    point = max((point for point in points if is_stock(point)), key=lambda point: point.prompt_tokens)
    rows = []
    for density in _DENSITIES:
        planner = planner_for(served_plan(arguments, density), [point], tp_size=arguments["tp"])
        rows.append({"density": density, "predicted_ms": round(predict_ttft_ms(planner, point, cost), 2)})
    return {"prompt_tokens": point.prompt_tokens, "stock_ms": point.ttft_ms, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serving", type=Path, default=Path("bench/results/serving.json"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/simulation.json"))
    args = parser.parse_args()
    served = json.loads(args.serving.read_text())
    plan, points, tp_size = served_plan(served["arguments"]), read_points(args.serving), served["arguments"]["tp"]
    short = [point for point in points if point.prompt_tokens - point.cached_tokens <= _SHORT_TOKENS]
    from_stock = judge(plan, tp_size, points, [point for point in points if not is_stock(point)])
    result = {
        "bench": "simulation",
        "measured": {name: served[name] for name in ("device", "gpus", "git", "versions")},
        "from_stock": from_stock,
        "from_short": judge(plan, tp_size, short, [point for point in points if point not in short]),
        "longest_prompt": longest_prompt(served["arguments"], points, StepCost(**from_stock["fit"]["cost"])),
    }
    write_atomically(args.out, json.dumps(result | provenance(args), indent=1).encode())
    for name in ("from_stock", "from_short"):
        print(name, json.dumps(result[name]["fit"]))
        for row in result[name]["rows"]:
            what = f"{row['variant']:8} {row['prompt_tokens']:7} of which cached {row['cached_tokens']:7}"
            times = f"measured {row['ttft_ms']:8.1f} ms, predicted {row['predicted_ms']:8.1f}"
            print(f"  {what}: {times}, off {row['off']:+.1%}")
    print(json.dumps(result["longest_prompt"]))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
