# SPDX-License-Identifier: Apache-2.0
"""Speed and quality of the scheduling core against its baselines, on one thread, steps also on up to four.

Writes bench/results/scheduler.json.

    python bench/bench_scheduler.py [--out FILE] [--plan PLAN] [--instances 2000]

Times are medians and p99 of wall-clock calls through Python, so they include the binding. Ratios against baselines
hold on any machine; absolute times are those of the machine named in the file.
"""

import argparse
import ctypes
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from replica_rows import bench_replica_placement, bench_replica_steps

from shplb import CostModel, StepPlanner, __version__, place_heads, plan_work, work_plan_bytes

ROOT = Path(__file__).resolve().parent
SEED = 20260310
NUM_CTAS = 132


def timed(call: Callable[[], object], rounds: int, warm_up: int = 3) -> dict[str, float]:
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1000)
    return {
        "median_us": round(float(np.median(times)), 2),
        "p99_us": round(float(np.percentile(times, 99)), 2),
        "min_us": round(min(times), 2),
        "rounds": rounds,
    }


def aligned(num_bytes: int) -> np.ndarray:
    buffer = np.zeros(num_bytes + 16, np.uint8)
    start = -buffer.ctypes.data % 16
    return buffer[start : start + num_bytes]


def placement_loads(kind: str, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    if kind == "lognormal":
        loads = rng.lognormal(0, 1, shape)
    elif kind == "bimodal":
        loads = np.where(rng.random(shape) < 0.2, rng.uniform(8, 12, shape), rng.uniform(0.5, 1.5, shape))
    else:
        loads = rng.random(shape)
    return (loads * 1e6).astype(np.int64) + 1


METHODS = ("contiguous", "snake", "lpt", "lpt_swap", "auto")


def bench_placement(rng: np.random.Generator, instances: int) -> list[dict]:
    rows = []
    for kind in ("lognormal", "bimodal", "uniform"):
        for units, ranks in ((8, 2), (8, 4), (16, 4), (32, 4), (32, 8), (64, 8)):
            loads = placement_loads(kind, rng, (instances, units))
            bound = place_heads(loads, ranks).lower_bound
            row: dict = {"loads": kind, "num_units": units, "num_ranks": ranks, "instances": instances}
            largest = {m: place_heads(loads, ranks, method=m).rank_loads.max(axis=1) for m in METHODS}
            for method in METHODS:
                ratio = largest[method] / bound
                one_call = timed(lambda m=method, x=loads, k=ranks: place_heads(x, k, method=m), 5, 1)
                row[method] = {
                    "mean_ratio": round(float(ratio.mean()), 5),
                    "p99_ratio": round(float(np.percentile(ratio, 99)), 5),
                    "us_per_layer": round(one_call["median_us"] / instances, 3),
                }
            row["worse_than_lpt"] = int((largest["auto"] > largest["lpt"]).sum())
            row["uneven_mean_ratio"] = round(
                float((place_heads(loads, ranks, equal_count=False).rank_loads.max(axis=1) / bound).mean()), 5
            )
            if units <= 16:
                part = loads[: instances // 10]
                exact = place_heads(part, ranks, method="exact").rank_loads.max(axis=1)
                gap = largest["auto"][: len(part)] / exact
                row["gap_to_exact"] = {"mean": round(float(gap.mean()), 6), "max": round(float(gap.max()), 5)}
            rows.append(row)
    return rows


def item_lengths(kind: str, rng: np.random.Generator, count: int) -> np.ndarray:
    if kind == "lognormal":
        tokens = rng.lognormal(8.5, 1.0, count)
    elif kind == "uniform":
        tokens = rng.uniform(128, 40000, count)
    else:  # 16 heads with log-normal densities over the blocks of a chunk at the end of 128K
        density = np.clip(rng.lognormal(np.log(0.08), 1, 16), 0.005, 1)
        tokens = (density[:, None] * np.linspace(122880, 131072, count // 16)).ravel()
    return np.clip(tokens, 128, 131072).astype(np.int32)


def load_flashinfer_reference() -> ctypes.CDLL | None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    library = Path(tempfile.mkdtemp()) / "flashinfer_plan.so"
    source = ROOT / "reference" / "flashinfer_plan.cc"
    subprocess.run([compiler, "-O3", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def bench_work_plan(rng: np.random.Generator) -> list[dict]:
    reference = load_flashinfer_reference()
    rows = []
    for kind in ("lognormal", "uniform", "heads"):
        for count in (64, 256, 1024, 4096, 16384):
            kv_lens = item_lengths(kind, rng, count)
            zeros, rows_each = np.zeros(count, np.int32), np.full(count, 128, np.int32)
            out = aligned(work_plan_bytes(count, NUM_CTAS))
            row: dict = {"lengths": kind, "num_items": count, "num_ctas": NUM_CTAS}
            for method in ("auto", "longest_first", "snake"):

                def call(method=method, kv_lens=kv_lens, zeros=zeros, rows_each=rows_each, out=out):
                    return plan_work(
                        zeros, rows_each, zeros, kv_lens, zeros, out, num_ctas=NUM_CTAS, head_dim=128, method=method
                    )

                plan = call()
                row[method] = timed(call, 300) | {"ratio": round(plan.makespan_ns / plan.lower_bound_ns, 5)}
            if reference is not None:
                table, span = np.zeros(7 * count + NUM_CTAS + 1, np.int32), ctypes.c_int64()
                pointers = [kv_lens.ctypes.data_as(ctypes.c_void_p), table.ctypes.data_as(ctypes.c_void_p)]

                def stock(pointers=pointers, count=count, span=span):
                    as_long = ctypes.c_int64
                    reference.flashinfer_plan(
                        pointers[0],
                        as_long(count),
                        as_long(1),
                        as_long(NUM_CTAS),
                        as_long(128),
                        pointers[1],
                        ctypes.byref(span),
                    )

                row["flashinfer_algorithm"] = timed(stock, 100)
            rows.append(row)
    return rows


def bench_flashinfer_python() -> dict | None:
    """What FlashInfer's plan() adds in Python: two builtin max() over a CPU tensor of as many lists."""
    try:
        import torch
    except ImportError:
        return None
    lengths = torch.arange(4096, dtype=torch.int32)
    return timed(lambda: (max(lengths), max(lengths)), 20) | {"num_lists": 4096}


def make_planner(
    layers: int, qo_heads: int, kv_heads: int, ranks: int, rng: np.random.Generator, num_threads: int = 1
) -> StepPlanner:
    visible = np.arange(2049)
    density = np.clip(rng.lognormal(np.log(0.08), 1, (layers, qo_heads, 1)), 0.005, 1)
    keep = np.clip(np.ceil(density * visible), np.minimum(4, visible), visible).astype(np.int32)
    slots = np.arange(kv_heads, dtype=np.int32).reshape(1, ranks, kv_heads // ranks)
    return StepPlanner(
        num_kv_heads=kv_heads,
        head_dim=128,
        keep_pages=keep,
        slot_groups=np.ascontiguousarray(np.tile(slots, (layers, 1, 1))),
        rank=0,
        num_ctas=NUM_CTAS,
        cost=CostModel(),
        num_threads=num_threads,
    )


def bench_steps(rng: np.random.Generator) -> list[dict]:
    rows = []
    planner = make_planner(32, 32, 8, 2, rng)
    threads = min(4, len(os.sched_getaffinity(0)))
    crew = make_planner(32, 32, 8, 2, np.random.default_rng(SEED), threads)
    for name, prefix, new in (("chunk_8192_on_122880", 122880, 8192), ("whole_131072", 0, 131072)):
        prefix_lens, new_lens = np.array([prefix]), np.array([new])
        out = aligned(planner.buffer_bytes(1, new))
        plan = planner.plan(prefix_lens, new_lens, out)
        step = timed(lambda p=prefix_lens, n=new_lens, o=out: planner.plan(p, n, o), 200 if new == 8192 else 40)
        work = int(plan.cta_makespan_ns.sum()) / int(plan.rank_makespan_ns[:, 0].sum())
        rows.append(
            {
                "step": name,
                "items_per_layer": plan.num_items,
                "num_layers": 32,
                "bytes": plan.num_bytes,
                "cta_makespan_over_prediction": round(work, 5),
                "predict": timed(lambda p=prefix_lens, n=new_lens: planner.predict(p, n), 100),
                **step,
                f"{threads} threads": timed(lambda p=prefix_lens, n=new_lens, o=out: crew.plan(p, n, o), 100),
            }
        )
    decoder = make_planner(80, 64, 8, 8, rng)
    kv_lens = rng.integers(1000, 131000, 256)
    rows.append({"step": "decode_256_requests_80_layers", **timed(lambda: decoder.decode_loads(kv_lens), 300)})
    return rows


def bench_real_plan(path: Path) -> list[dict]:
    from shplb.plan import ServingPlan

    plan = ServingPlan.load(path)
    rows = []
    for ranks in range(2, plan.model.num_kv_heads + 1):
        if plan.model.num_kv_heads % ranks:
            continue
        for method in METHODS:
            placed = place_heads(plan.loads, ranks, method=method)
            slowest = placed.rank_loads.max(axis=1).sum()
            rows.append(
                {
                    "num_ranks": ranks,
                    "method": method,
                    "work_weighted_imbalance": round(float(slowest * ranks / plan.loads.sum()), 5),
                    "max_over_bound": round(float((placed.rank_loads.max(axis=1) / placed.lower_bound).mean()), 5),
                }
            )
    return rows


def machine(note: str | None) -> dict:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    revision = run.stdout.strip() if run.returncode == 0 else None
    return {"cpu": cpu, "python": platform.python_version(), "git": revision, "note": note}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scheduler.json")
    parser.add_argument("--plan", type=Path, help="a ServingPlan whose real loads are placed too")
    parser.add_argument("--note", help="what else to say about the machine")
    parser.add_argument("--instances", type=int, default=2000)
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    result = {
        "command": "python bench/bench_scheduler.py",
        "seed": SEED,
        "machine": machine(args.note),
        "versions": {"shplb": __version__, "numpy": np.__version__},
        "steps": bench_steps(rng),
        "work_plan": bench_work_plan(rng),
        "flashinfer_python_part": bench_flashinfer_python(),
        "placement": bench_placement(rng, args.instances),
        "replica_placement": bench_replica_placement(lambda kind, shape: placement_loads(kind, rng, shape), timed),
        "replica_steps": bench_replica_steps(rng, aligned, timed),
        "real_plan": bench_real_plan(args.plan) if args.plan else None,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
