# SPDX-License-Identifier: Apache-2.0
"""What budgets cost in NLL on held-out text: uniform, least error per model and per layer, weighed by importance.

    python bench/bench_budgets.py --quick

Through transformers on the CPU, with page selection as served and the sparse layers of the torch path, on SmolLM2-135M
or any model that fits. Query blocks have 64 rows and no floor beyond the pages that are always kept, so that densities
of 0.15 are possible on contexts of 4096 tokens; served blocks of 192 rows and floors of 4 pages need longer ones.
All budgets are tuned to the same *computed* density; NLL is compared window by window with dense attention and with
uniform budgets, on the second half of every text. Writes JSON.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from plugged_model import PluggedModel
from provenance import provenance
from quality.sampling import WINDOW
from quality.variants import plan_at
from quality.workload import TEXT_DOMAINS
from transformers import AutoTokenizer

from shplb.container import write_atomically
from shplb.hf.gguf import convert_smollm2
from shplb.importance import Sensitivity, fisher_importance, measure_sensitivity, slope_importance
from shplb.plan import ServingPlan
from shplb.policies import BUDGETS
from shplb.profile import HeadProfile
from shplb.quality.candidates import computed_density
from shplb.sparsity import SparsityRule
from shplb.texts import Document, calibration_documents, held_out_documents

#: Name in the results -> (profile, budgets).
VARIANTS = {
    "uniform": ("plain", "uniform"),
    "least error, whole model": ("plain", "min_error"),
    "least error, per layer": ("plain", "min_error_layer"),
    "Fisher weight, whole model": ("fisher", "min_error_fisher"),
    "gradient weight, whole model": ("slope", "min_error_fisher"),
    "Fisher curves, whole model": ("loss", "min_error"),
}
# The form that serves and what it is measured against; the other two are what it was chosen over.
QUICK = tuple(VARIANTS)[:4]


def weighed_profiles(plain: HeadProfile, found: list[Sensitivity]) -> dict[str, HeadProfile]:
    """The profile as it is, with either importance, and with the loss itself in place of output error."""
    replace, model = msgspec.structs.replace, plain.model
    loss = np.array([each.loss for each in found])[:, :, :, None, :].repeat(len(plain.lengths), axis=3)
    return {
        "plain": plain,
        "fisher": replace(plain, importance=fisher_importance(found, model), importance_method="fisher"),
        "slope": replace(plain, importance=slope_importance(found, model), importance_method="fisher, slopes"),
        "loss": replace(plain, error=loss.astype(np.float32)),
    }


def windows(nll: np.ndarray) -> np.ndarray:
    """Means over windows of the second half of a text."""
    nll = nll[len(nll) // 2 :]
    return nll[: len(nll) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)


def compare(loss: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(mean, standard error) of the paired difference over windows."""
    difference = loss - other
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def measure(model: PluggedModel, plans: dict[str, ServingPlan], texts: list[Document]) -> dict[str, np.ndarray]:
    """NLL of every plan, and of dense attention under "": [num_windows], those of all texts in a row."""
    losses: dict[str, list[np.ndarray]] = {}
    for text in texts:
        for name, plan in {"": None, **plans}.items():
            start = time.monotonic()
            losses.setdefault(name, []).append(windows(model.nll(text.token_ids, plan)))
            print(f"{text.name} {name or 'dense'}: {losses[name][-1].mean():.4f} ({time.monotonic() - start:.0f} s)")
    return {name: np.concatenate(each) for name, each in losses.items()}


def rows_of(plans: dict[str, ServingPlan], losses: dict[str, np.ndarray], args: argparse.Namespace) -> list[dict]:
    found = []
    for name, plan in plans.items():
        variant, _, asked = name.rpartition("@")
        over, error = compare(losses[name], losses[""])
        row: dict[str, Any] = {"variant": variant, "density": float(asked)}
        row |= {"computed_density": computed_density(plan, args.tokens), "nll": float(losses[name].mean())}
        row |= {"nll_over_dense": over, "nll_over_dense_stderr": error, "windows": len(losses[name])}
        if variant != "uniform":
            less, less_error = compare(losses[name], losses[f"uniform@{asked}"])
            row |= {"nll_over_uniform": less, "nll_over_uniform_stderr": less_error}
        found.append(row)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, default=None, help="default: SmolLM2-135M, made in .cache")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--densities", default="0.15,0.25")
    parser.add_argument("--calibration", type=int, default=4, help="documents that decide the budgets")
    parser.add_argument("--texts", type=int, default=4, help="held-out documents")
    parser.add_argument("--query-block", type=int, default=64)
    parser.add_argument("--variants", default=",".join(map(str, range(len(VARIANTS)))), help="by index")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="2 texts of 3072 tokens at 0.25: minutes on two cores")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench_budgets"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/budgets.json"))
    args = parser.parse_args()
    if args.quick:
        args.tokens, args.densities, args.calibration, args.texts = 3072, "0.25", 2, 2
        args.variants = ",".join(map(str, range(len(QUICK))))
    return args


def main() -> None:
    args = arguments()
    folder = args.model_path or convert_smollm2(args.work / "smollm2-float32")
    rule = SparsityRule(args.query_block, floor_pages=1, dense_below_tokens=256)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), PluggedModel(folder, args.tokens, rule)
    calibration = calibration_documents(args.tokens, tokenizer, limit=args.calibration)
    texts = held_out_documents(args.tokens, tokenizer, domains=TEXT_DOMAINS, limit=args.texts, seed=args.seed)
    start = time.monotonic()
    plain = model.profile([document.token_ids for document in calibration])
    profiled = time.monotonic()
    found = measure_sensitivity(folder, calibration, model.rule, device="cpu", seed=args.seed)
    print(f"profiled in {profiled - start:.0f} s, importance in {time.monotonic() - profiled:.0f} s")
    profiles, names = weighed_profiles(plain, found), list(VARIANTS)
    plans: dict[str, ServingPlan] = {}
    for density in args.densities.split(","):
        for name in (names[int(index)] for index in args.variants.split(",")):
            profile, budgets = VARIANTS[name]
            plan = plan_at(profiles[profile], BUDGETS[budgets], float(density), args.tokens)
            computed = computed_density(plan, args.tokens)
            if abs(computed / float(density) - 1) > 0.02:
                raise ValueError(
                    f"density {density} can't be had with {args.tokens} tokens, the nearest is {computed:.3f}."
                )
            plans[f"{name}@{density}"] = plan
    rows = rows_of(plans, measure(model, plans, texts), args)
    facts = {
        "bench": "budgets",
        "model": folder.name,
        "tokens": args.tokens,
        "calibration": [document.name for document in calibration],
        "texts": [text.name for text in texts],
        "nll_on": "second half of each text",
        "rows": rows,
    }
    write_atomically(args.out, json.dumps(provenance(args) | facts, indent=1).encode())
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
