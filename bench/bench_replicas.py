# SPDX-License-Identifier: Apache-2.0
"""What replicas of KV groups do to the balance of ranks, predicted, and what they cost; beside uneven counts of groups.

    python bench/bench_replicas.py --profile PROFILE --profile-name MODEL [--tp 2,4,8] [--tokens 131072]

The heads of a real profile are stretched to the attention shape of Llama-3.1-8B (8 KV groups of 4 query heads):
every layer draws its 32 heads, with replacement, from the real heads of the same layer of the profiled model, so heads
differ as they did there. Budgets are solved on the profile itself. Attention of one prompt, in chunks of 8192, is
what the step planner predicts for an H200; a rank takes at least as long as its longest page list.

Uneven counts: ranks may hold any number of groups, where that makes a layer's largest load smaller. Every rank's KV
pool has as many tokens as the fullest one's, and is as wide in every layer as in the widest; pools with a width for
every layer would take less, with ranks named such that all hold about as many groups. Decoding waits, layer by layer,
for the rank that holds most.
"""

import argparse
import json
import sys
from pathlib import Path

import msgspec
import numpy as np
from provenance import provenance
from uneven_counts import LayerTimes, counts_of, makespans_of, place_unevenly, uneven_times

from shplb.allocation import placed_order
from shplb.commands.numbers import parse_numbers
from shplb.container import write_atomically
from shplb.model import Fingerprint, ModelShape
from shplb.plan import ServingPlan
from shplb.plan_planner import planner_of
from shplb.planning import make_plan
from shplb.profile import HeadProfile
from shplb.rank_loads import imbalance
from shplb.replica_price import price_of
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


def rows_of(plan: ServingPlan, tp_size: int, tokens: int) -> list[dict]:
    plan = msgspec.structs.replace(plan, tp_size=tp_size)
    pages = np.asarray(plan.budget_table(tokens).pages)
    rows, times = [], {}
    for name, replicas in (("contiguous", 0), ("placed", 0), ("replicas", 1)):
        order = plan.own_order if name == "contiguous" else placed_order(plan.loads, tp_size, replicas)
        made = msgspec.structs.replace(plan, physical_to_logical=order, replicas=replicas)
        times[name] = LayerTimes.of(makespans_of(planner_of(plan, pages, order, tp_size), tokens))
        rows.append(
            {
                "tp_size": tp_size,
                "heads": name,
                "replicas": replicas,
                **times[name].facts(tp_size),
                "load_imbalance": round(imbalance(made.rank_loads(plan.loads)), 4),
                "kv_memory_factor": price_of(made).factor,
                "kv_memory_factor_by_layer": price_of(made).factor,
                "decode_factor": price_of(made).factor,
                "kv_bytes_per_token": price_of(made).kv_bytes_per_token,
            }
        )
    return [*rows[:2], uneven_row(plan, pages, tokens), rows[2]]


def uneven_row(plan: ServingPlan, pages: np.ndarray, tokens: int) -> dict:
    ranks, layers = plan.tp_size, plan.model.num_layers
    placement = place_unevenly(plan.loads, ranks)
    counts = counts_of(placement, ranks)
    even = GROUPS // ranks
    return {
        "tp_size": ranks,
        "heads": "uneven",
        "replicas": 0,
        **uneven_times(plan, pages, placement, tokens).facts(ranks),
        "kv_memory_factor": int(counts.max()) / even,
        "kv_memory_factor_by_layer": round(int(counts.sum(axis=0).max()) / (even * layers), 4),
        "decode_factor": round(int(counts.max(axis=1).sum()) / (even * layers), 4),
        "kv_bytes_per_token": price_of(plan).kv_bytes_per_token // even * int(counts.max()),
        "uneven_layers": int((np.ptp(counts, axis=1) > 0).sum()),
    }


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
    try:
        sizes = parse_numbers("--tp", args.tp, "numbers of ranks such as 2,4,8")
        profile = HeadProfile.load(args.profile)
        plan = stretched(make_plan(profile, tp_size=1, density=args.density), args.seed)
        rows = [row for tp in sizes for row in rows_of(plan, tp, args.tokens)]
    except ValueError as error:
        sys.exit(str(error))
    facts = {"profile_tokens": int(profile.lengths[-1]), "tokens": args.tokens, "rows": rows}
    result = provenance(args) | facts
    write_atomically(args.out, f"{json.dumps(result, indent=1)}\n".encode())
    for row in result["rows"]:
        print(row)


if __name__ == "__main__":
    main()
