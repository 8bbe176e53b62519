# SPDX-License-Identifier: Apache-2.0
"""What sparse prefill costs in quality, objective against objective, at equal computed density.

    python bench/bench_quality.py --model-path MODEL --profile PROFILE --tokens 16384 --densities 0.05,0.1

Serves the model once dense and once per (density, objective), through SGLang's HTTP API, and compares on the same
texts and retrieval prompts, none of them used for calibration: NLL per token (paired over windows of 256 tokens), and
retrieval answers (right when every answer token is the most likely one). Writes JSON.
"""

import argparse
import concurrent.futures
import json
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance
from transformers import AutoTokenizer

from shplb.container import write_atomically
from shplb.plan import ServingPlan
from shplb.planning import make_plan
from shplb.profile import HeadProfile
from shplb.sglang.cpu import detect_device
from shplb.sglang.launch import Server
from shplb.sglang.metadata import StepBudgets
from shplb.texts import Document, RetrievalPrompt, held_out_documents, retrieval_prompts

WINDOW = 256
OBJECTIVES = ("uniform", "max_min", "min_error")
TEXT_DOMAINS = ["prose", "code", "manual", "dialogue"]


def plan_at(profile: HeadProfile, objective: str, computed: float, tokens: int, scope: str = "model") -> ServingPlan:
    """The plan whose *computed* density on a prompt of ``tokens`` tokens is ``computed``, by bisection."""
    low, high = 1e-3, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        plan = make_plan(profile, tp_size=1, density=middle, objective=objective, scope=scope)  # type: ignore[arg-type]
        low, high = (middle, high) if computed_density(plan, tokens) < computed else (low, middle)
    return plan


def computed_density(plan: ServingPlan, tokens: int) -> float:
    step = StepBudgets(plan.budget_table(tokens), [0], [tokens])
    return float(step.group_loads(plan).sum() / step.causal_row_pages(plan))


class Sample:
    """Per-token NLL of the texts, and NLL and rightness of the retrieval answers, under one server."""

    def __init__(self, server: Server, texts: list[Document], prompts: list[RetrievalPrompt]) -> None:
        self.windows = [self._windows(server, text.token_ids) for text in texts]
        answers = [self._answer(server, prompt) for prompt in prompts]
        self.answer_nll = [nll for nll, _ in answers]
        self.right = [right for _, right in answers]

    @staticmethod
    def _windows(server: Server, tokens: list[int]) -> np.ndarray:
        start = len(tokens) // 2 // WINDOW * WINDOW
        nll = np.array([-value for value, _, _ in _logprobs(server, tokens, start)["input_token_logprobs"][1:]])
        return nll[: len(nll) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1)

    @staticmethod
    def _answer(server: Server, prompt: RetrievalPrompt) -> tuple[float, bool]:
        head = prompt.token_ids + prompt.lead_in_token_ids
        info = _logprobs(server, head + prompt.answer_token_ids, len(head) - 1)
        values = info["input_token_logprobs"][1:]
        best = [top[0][1] for top in info["input_top_logprobs"][1:]]
        return -float(np.mean([value for value, _, _ in values])), best == prompt.answer_token_ids


def _logprobs(server: Server, tokens: list[int], start: int) -> dict[str, Any]:
    body = {
        "input_ids": tokens,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": 1,
    }
    return dict(server.post("/generate", body)["meta_info"])


def measure(
    name: str, plan: ServingPlan | None, args: argparse.Namespace, texts: list[Document], prompts: list[RetrievalPrompt]
) -> tuple[Sample, dict[str, Any]]:
    """Serve with ``plan`` (None: stock dense SGLang) and take a sample; the sparse path must have run."""
    options = ["--max-total-tokens", str(args.tokens + 8192), "--disable-radix-cache", "--skip-server-warmup"]
    options += ["--chunked-prefill-size", "3072", *args.server_options.split()]
    if plan is not None:
        path = args.work / f"{name}.plan.safetensors"
        plan.save(path)
        options += ["--enable-shplb", "--shplb-plan", str(path)]
    elif args.device == "cpu":
        options += ["--attention-backend", "torch_native"]
    else:
        options += ["--attention-backend", "flashinfer"]
    with Server(args.model_path, args.work / f"{name}.log", device=args.device, options=options) as server:
        server.wait_ready()
        sample = Sample(server, texts, prompts)
        state = server.shplb_state() if plan is not None else {}
    if plan is not None and not state["sparse_steps"]:
        raise RuntimeError(f"{name}: no step was sparse; see {server.log}")
    return sample, state


def compare(sample: Sample, dense: Sample) -> dict[str, float]:
    """Differences to dense with paired standard errors over windows."""
    difference = np.concatenate(sample.windows) - np.concatenate(dense.windows)
    answers = np.array(sample.answer_nll) - np.array(dense.answer_nll)
    return {
        "text_nll": float(np.concatenate(sample.windows).mean()),
        "text_nll_over_dense": float(difference.mean()),
        "text_nll_stderr": float(difference.std(ddof=1) / np.sqrt(len(difference))),
        "answer_nll_over_dense": float(answers.mean()),
        "answers_right": int(sum(sample.right)),
        "answers": len(sample.right),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--model-name", default=None, help="name in the results, default the folder's")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--densities", default="0.2,0.35")
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument(
        "--parallel", type=int, default=1, help="servers at a time (one GPU holds many of a small model)"
    )
    parser.add_argument("--server-options", default="", help="further options for every server")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench_quality"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/quality.json"))
    args = parser.parse_args()
    args.device = detect_device()
    return args


def main() -> None:
    args = arguments()
    profile, tokenizer = HeadProfile.load(args.profile), AutoTokenizer.from_pretrained(args.model_path)
    texts = held_out_documents(args.tokens, tokenizer, domains=TEXT_DOMAINS, limit=args.texts, seed=args.seed)
    prompts = retrieval_prompts(args.tokens - 64, tokenizer, count=args.prompts, seed=args.seed, split="held_out")
    plans: dict[str, ServingPlan | None] = {"dense": None}
    for density in map(float, args.densities.split(",")):
        for objective in OBJECTIVES:
            plans[f"{objective}@{density:g}"] = plan_at(profile, objective, density, args.tokens)
    with concurrent.futures.ThreadPoolExecutor(args.parallel) as pool:
        futures = {name: pool.submit(measure, name, plan, args, texts, prompts) for name, plan in plans.items()}
        samples = {name: future.result() for name, future in futures.items()}
    dense = samples["dense"][0]
    rows = []
    for name, (sample, state) in samples.items():
        plan = plans[name]
        row = {"name": name, **compare(sample, dense)}
        if plan is not None:
            row |= {"objective": plan.objective, "computed_density": computed_density(plan, args.tokens)}
            row |= {"asked_density": plan.density, "measured_density": state["density"]}
        rows.append(row)
        print(json.dumps(row))
    facts = {
        "bench": "quality",
        "model": args.model_name or args.model_path.name,
        "tokens": args.tokens,
        "texts": [text.name for text in texts],
        "nll_on": "second half of each text",
        "profile_documents": list(profile.documents),
        "rows": rows,
    }
    write_atomically(args.out, json.dumps(provenance(args) | facts, indent=1).encode())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
