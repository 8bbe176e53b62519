# SPDX-License-Identifier: Apache-2.0
"""What replicas of KV groups do to the balance of ranks, in the simulator, and what they cost in KV memory.

    python bench/bench_replicas.py --profile PROFILE [--tp 2,4,8] [--tokens 131072]

The heads of a real profile are stretched to the attention shape of Llama-3.1-8B (8 KV groups of 4 query heads):
every layer draws its 32 heads, with replacement, from the real heads of the same layer of the profiled model, so heads
differ as they did there. Budgets are solved on the profile itself. Attention of one prompt, in chunks of 8192, is
what the step planner predicts for an H200; a rank takes at least as long as its longest page list.
"""

import argparse
import json
from pathlib import Path

import msgspec
import numpy as np
from provenance import provenance

from shplb.allocation import placed_order
from shplb.commands.numbers import parse_numbers
from shplb.model import Fingerprint, ModelShape
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.planning import make_plan
from shplb.prediction import CHUNK_TOKENS
from shplb.profile import HeadProfile
from shplb.rank_loads import imbalance
from shplb.replica_price import price_of
from shplb.simulator import simulate
from shplb.sparsity import query_block_size

ROOT = Path(__file__).parents[1]
GROUPS, GROUP_SIZE, HEAD_DIM, HIDDEN_SIZE = 8, 4, 128, 4096


def stretched(plan: ServingPlan, seed: int) -> ServingPlan:
    """``plan`` with the heads of Llama-3.1-8B, each a real head of the same layer."""
    layers, heads, lengths = plan.budgets.shape
    drawn = np.random.default_rng(seed).integers(0, heads, (layers, GROUPS * GROUP_SIZE))
    budgets = np.take_along_axis(plan.budgets, drawn[:, :, None], axis=1)
    shape = ModelShape("LlamaForCausalLM", layers, GROUPS * GROUP_SIZE, GROUPS, HEAD_DIM, HIDDEN_SIZE)
    loads = budgets[:, :, lengths - 1].reshape(layers, GROUPS, GROUP_SIZE).sum(axis=2)
    return msgspec.structs.replace(
        plan,
        model=shape,
        fingerprint=Fingerprint("stretched"),
        rule=msgspec.structs.replace(plan.rule, query_block=query_block_size(HEAD_DIM)),
        budgets=budgets,
        loads=np.rint(loads * 1e6).astype(np.int64),
        physical_to_logical=np.tile(np.arange(GROUPS, dtype=np.int32), (layers, 1)),
    )


def measure(plan: ServingPlan, pages: np.ndarray, order: np.ndarray, tokens: int) -> dict[str, float]:
    """Predicted attention of one prompt: slowest over mean rank, layer by layer and chunk by chunk, and its time."""
    planner = planner_of(plan, pages, order, plan.tp_size)
    prefix = np.arange(0, tokens, CHUNK_TOKENS)
    new = np.minimum(tokens - prefix, CHUNK_TOKENS)
    steps = simulate(planner, np.arange(len(prefix) + 1), prefix, new, "sparse")
    ratio = float(steps.makespan_ns.sum() * plan.tp_size / steps.rank_ns.sum())
    return {"imbalance": round(ratio, 4), "attention_ms": round(float(steps.makespan_ns.sum()) * 1e-6, 3)}


def rows_of(plan: ServingPlan, tp_size: int, tokens: int) -> list[dict]:
    plan = msgspec.structs.replace(plan, tp_size=tp_size)
    pages = np.asarray(plan.budget_table(tokens).pages)
    rows = []
    for name, replicas in (("contiguous", 0), ("placed", 0), ("replicas", 1)):
        order = plan.own_order if name == "contiguous" else placed_order(plan.loads, tp_size, replicas)
        made = msgspec.structs.replace(plan, physical_to_logical=order, replicas=replicas)
        rows.append(
            {
                "tp_size": tp_size,
                "heads": name,
                "replicas": replicas,
                **measure(plan, pages, order, tokens),
                "load_imbalance": round(imbalance(made.rank_loads(plan.loads)), 4),
                "kv_memory_factor": price_of(made).factor,
                "kv_bytes_per_token": price_of(made).kv_bytes_per_token,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--profile-name", required=True, help="of the model that was profiled, for the table")
    parser.add_argument("--tp", default="2,4,8")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--density", type=float, default=0.10)
    parser.add_argument("--seed", type=int, default=20260310)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "replicas.json")
    args = parser.parse_args()
    profile = HeadProfile.load(args.profile)
    plan = stretched(make_plan(profile, tp_size=1, density=args.density), args.seed)
    sizes = parse_numbers("--tp", args.tp, "numbers of ranks such as 2,4,8")
    result = {
        **provenance(args),
        "profile_tokens": int(profile.lengths[-1]),
        "tokens": args.tokens,
        "rows": [row for tp in sizes for row in rows_of(plan, tp, args.tokens)],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["rows"]:
        print(row)


if __name__ == "__main__":
    main()
