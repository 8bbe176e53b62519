# SPDX-License-Identifier: Apache-2.0
"""GPU time of one layer's prefill attention: dense baselines against ours, with selection and planning apart.

    python bench/bench_attention.py [--shapes llama-8b-tp2,...] [--steps whole-131072,...] [--densities 0.05,0.10,0.25]
                                    [--policies rivals]

Random weights and keys: times depend on list lengths, which come from log-normal budgets (``--sigma``), not on values.
Needs a GPU of compute capability 9.0. Writes bench/results/attention.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_steps import DEVICE, DTYPE, OurStep
from provenance import provenance

from shplb.container import write_atomically
from shplb.kernels import dense_baselines as baselines
from shplb.kernels.trial import Pool, Shape, Step
from shplb.policies import POLICIES

SEED = 20260310
BASELINES = {
    "dense fa3 (stock on Hopper)": baselines.fa3,
    "dense flashinfer fa2 (stock)": baselines.flashinfer_stock,
    "dense flashinfer sm90": baselines.flashinfer_sm90,
}
#: The paper's comparison: ours, and what it is measured against.
RIVALS = ("shplb", "streaming_llm", "minference", "xattention", "flexprefill")
SHAPES = {
    "llama-8b-tp1": Shape(32, 8, 128),
    "llama-8b-tp2": Shape(16, 4, 128),
    "llama-72b-tp8": Shape(8, 1, 128),
    "qwen2.5-7b-tp1": Shape(28, 4, 128),
}
STEPS = {
    "whole-131072": Step(0, 131072),
    "whole-32768": Step(0, 32768),
    "chunk-8192-on-122880": Step(122880, 8192),
    "chunk-8192-on-24576": Step(24576, 8192),
    "chunk-2048-on-122880": Step(122880, 2048),
    "chunk-512-on-122880": Step(122880, 512),
}


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Median GPU time; FlashInfer's timer clears the L2 cache between rounds."""
    from flashinfer.testing import bench_gpu_time

    times = bench_gpu_time(call, dry_run_iters=2, repeat_iters=rounds)
    return round(float(np.median(times)), 4)


def measure_baselines(shape: Shape, step: Step, rounds: int) -> list[dict[str, Any]]:
    rows = []
    flops = step.dense_flops(shape)
    pool = Pool(shape, step, DTYPE, DEVICE)
    for name, make in BASELINES.items():
        try:
            call = make(shape, step, pool)
        except baselines.UnavailableError as error:
            rows.append({"variant": name, "note": str(error)})
            continue
        ms = median_ms(call, rounds)
        rows.append({"variant": name, "density": 1.0, "ms": ms, "tflops": round(flops / ms / 1e9, 1)})
    return rows


def measure_ours(shape: Shape, step: Step, density: float, sigma: float, rounds: int) -> list[dict[str, Any]]:
    variants = {
        "ours": {"sigma": sigma},
        "ours, lists per KV group": {"sigma": sigma, "shared_lists": True},
        "ours, equal budgets": {"sigma": 0.0},
        "ours, naive CTA order": {"sigma": sigma, "naive_order": True},
    }
    if density == 1.0:
        variants = {"ours": {"sigma": 0.0}}
    rows = []
    for name, settings in variants.items():
        ours = OurStep(shape, step, density, seed=SEED, **settings)
        attention = median_ms(ours.attend, rounds)
        row = {"variant": name, "density": round(ours.density, 4), "attention_ms": attention}
        row["tflops"] = round(ours.flops / attention / 1e9, 1)
        if name in ("ours", "ours, lists per KV group"):
            row["select_ms"] = median_ms(ours.select, rounds)
            row["parts_ms"] = {part: median_ms(call, rounds) for part, call in ours.parts().items()}
            row["ms"] = median_ms(ours.run, rounds)
            row["plan_us_per_layer"] = round(plan_us(ours, rounds), 2)
            row["predicted_ms"] = round(ours.predicted_ms, 4)
        rows.append(row)
    return rows


def measure_policies(
    shape: Shape, step: Step, density: float, sigma: float, rounds: int, names: list[str]
) -> list[dict[str, Any]]:
    """Selection and attention of other policies at the same computed density, over the same kernel.

    Rivals whose budgets are uniform have equal lists; of those whose lists are as long as scores say, ``coverage`` is
    tuned to the density, and the work plan made on the GPU counts as selection.
    """
    rows = []
    for name in names:
        policy = POLICIES[name]
        spread = 0.0 if policy.budgets == "uniform" else sigma
        ours = OurStep(shape, step, density, seed=SEED, sigma=spread, num_layers=1, policy=policy)
        attention = median_ms(ours.attend, rounds)
        row = {"variant": f"policy {name}", "density": round(ours.density, 4), "attention_ms": attention}
        row["tflops"] = round(ours.flops / attention / 1e9, 1)
        row["select_ms"] = median_ms(ours.select, rounds)
        row["ms"] = median_ms(ours.run, rounds)
        row["parts"] = {"budgets": policy.budgets, "score": policy.score, "choice": policy.choice}
        if policy.choice == "top_p":
            row["coverage"] = round(ours.prefill.rule.coverage, 4)
        rows.append(row)
        torch.cuda.empty_cache()
    return rows


def plan_us(ours: OurStep, rounds: int) -> float:
    """CPU time of planning a step, per layer, tables and staging included."""
    times = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        ours.begin()
        times.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    return float(np.median(times[3:])) * 1e6 / ours.num_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llama-8b-tp2")
    parser.add_argument("--steps", default="whole-131072,chunk-8192-on-122880")
    parser.add_argument("--densities", default="0.05,0.10,0.25")
    parser.add_argument("--sigma", type=float, default=0.8, help="spread of log-normal budgets")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    parser.add_argument(
        "--policies",
        default="",
        help=f"time these, too, comma-separated: {','.join(POLICIES)}; rivals for five of them",
    )
    args = parser.parse_args()
    names = list(RIVALS) if args.policies == "rivals" else [name for name in args.policies.split(",") if name]
    if unknown := sorted(set(names) - set(POLICIES)):
        parser.error(f"--policies names {', '.join(unknown)}, expected some of {', '.join(POLICIES)}, or rivals")
    results: list[dict[str, Any]] = []
    facts = provenance(args) | {"seed": SEED}
    for shape_name in args.shapes.split(","):
        for step_name in args.steps.split(","):
            shape, step = SHAPES[shape_name], STEPS[step_name]
            rows = measure_baselines(shape, step, args.rounds)
            for density in map(float, args.densities.split(",")):
                rows += measure_ours(shape, step, density, args.sigma, args.rounds)
                rows += measure_policies(shape, step, density, args.sigma, args.rounds, names)
            for row in rows:
                results.append({"shape": shape_name, "step": step_name, **row})
                print(json.dumps(results[-1]), flush=True)
            torch.cuda.empty_cache()
            write_atomically(args.out, f"{json.dumps(facts | {'results': results}, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
