# SPDX-License-Identifier: Apache-2.0
"""Page selection as served against a perfect one: what equally long page lists recover, and what text they lose.

    python bench/bench_selection.py --model-path MODEL --profile m.profile.safetensors --tokens 16384 --density 0.1

Through transformers, on held-out texts, under the budgets that are served. Every score ranks the same pages of the same
query blocks (`oracle`: by the true attention mass). A few rows of one block in four are measured against dense
attention; NLL is that of the second half of every text. Writes JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from bench_budgets import compare, measure
from provenance import provenance
from quality.variants import plan_at
from quality.workload import TEXT_DOMAINS
from selection_probe import Findings, SelectionProbe
from transformers import AutoTokenizer

from shplb.container import write_atomically
from shplb.plan import ServingPlan
from shplb.policies import BUDGETS, DEFAULT, POLICIES, SCORES, parse_policy
from shplb.profile import HeadProfile
from shplb.quality.candidates import computed_density
from shplb.sglang.cpu import detect_device
from shplb.sparsity import SparsityRule
from shplb.texts import held_out_documents

ORACLE = "oracle"
SERVED = POLICIES[DEFAULT].score


def rules_of(plan: ServingPlan, names: list[str]) -> dict[str, SparsityRule]:
    return {name: parse_policy(f"{DEFAULT},score={name}").rule(plan.rule) for name in names}


def row_of(name: str, found: Findings, losses: dict[str, np.ndarray]) -> dict[str, Any]:
    """One score: means over heads of each layer, against dense attention and against the oracle."""
    recovered = found.recovered[name].mean(axis=1) / found.rows
    best = found.recovered[ORACLE].mean(axis=1) / found.rows
    error = np.sqrt(found.error[name].sum(axis=1) / found.norm.sum(axis=1))
    over, stderr = compare(losses[name], losses[""])
    ideal, _ = compare(losses[ORACLE], losses[""])
    return {
        "score": name,
        "recovered_mass": float(recovered.mean()),
        "recovered_of_oracle": float(recovered.mean() / best.mean()),
        "least_recovered_of_oracle": float((recovered / best).min()),
        "output_error": float(error.mean()),
        "recovered_mass_by_layer": [round(x, 5) for x in recovered.tolist()],
        "output_error_by_layer": [round(x, 5) for x in error.tolist()],
        "nll_over_dense": over,
        "nll_over_dense_stderr": stderr,
        "nll_gap_added": over / ideal - 1.0,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--model-name", help="name in the results, default the folder's")
    parser.add_argument("--profile", type=Path, required=True, help="of `shplb profile`, what budgets are made from")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--density", type=float, default=0.1, help="computed share of the causal blocks")
    parser.add_argument("--scores", default=f"{SERVED},antidiagonal_8,{ORACLE}", help=f"of {', '.join(SCORES)}")
    parser.add_argument("--texts", type=int, default=4, help="held-out documents")
    parser.add_argument("--rows", type=int, default=16, help="of a query block, measured against dense attention")
    parser.add_argument("--every", type=int, default=4, help="one query block in so many is measured")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/selection.json"))
    args = parser.parse_args()
    args.scores = list(dict.fromkeys([*args.scores.split(","), ORACLE]))
    if unknown := [name for name in args.scores if name not in SCORES]:
        parser.error(f"--scores holds {', '.join(unknown)}, expected some of {', '.join(SCORES)}.")
    return args


def main() -> None:
    args = arguments()
    tokenizer, profile = AutoTokenizer.from_pretrained(args.model_path), HeadProfile.load(args.profile)
    plan = plan_at(profile, BUDGETS[POLICIES[DEFAULT].budgets], args.density, args.tokens)
    model = SelectionProbe(args.model_path, args.tokens, plan.rule, detect_device())
    texts = held_out_documents(args.tokens, tokenizer, domains=TEXT_DOMAINS, limit=args.texts, seed=args.seed)
    rules, found = rules_of(plan, args.scores), Findings({}, {}, np.zeros(()))
    for index, text in enumerate(texts):
        found.add(model.measure(text.token_ids, plan, rules, rows=args.rows, seed=args.seed + index, every=args.every))
    losses = measure(model, {name: msgspec.structs.replace(plan, rule=rule) for name, rule in rules.items()}, texts)
    rows = [row_of(name, found, losses) for name in args.scores]
    facts = {
        "bench": "selection",
        "model": args.model_name or args.model_path.name,
        "tokens": args.tokens,
        "computed_density": computed_density(plan, args.tokens),
        "texts": [text.name for text in texts],
        "rows_measured": found.rows,
        "nll_on": "second half of each text",
        "rows": rows,
    }
    write_atomically(args.out, json.dumps(provenance(args) | facts, indent=1).encode())
    for row in rows:
        print(json.dumps({key: value for key, value in row.items() if not key.endswith("by_layer")}))


if __name__ == "__main__":
    main()
