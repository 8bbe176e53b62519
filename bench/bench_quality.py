# SPDX-License-Identifier: Apache-2.0
"""What sparse prefill costs in quality, against stock dense SGLang, through the server's HTTP API.

    python bench/bench_quality.py --model-path MODEL --profile PROFILE --tokens 16384,32768 \\
        --variants dense min_error@0.1 max_min@0.1 uniform@0.1
    python bench/bench_quality.py --quick               # without a GPU: SmolLM2, minutes

Every variant's server answers the same prompts: RULER's 13 tasks, key-value retrieval and conversations that meet a
cached prefix (greedy replies, scored as strings), and held-out texts of four domains (NLL per token). Differences to
stock come with paired bootstrap intervals, and a rule says which densities are free of loss: docs/quality.md.
Times to the first token are taken when nothing else runs. Writes JSON whenever a server has answered, once stock has.
"""

import json
import sys
import time
from functools import partial
from typing import Any

from long_tasks import Corpus, Materials, read_questions
from long_tasks.questions import SHIPPED
from provenance import provenance
from quality.arguments import Arguments, arguments, provide_inputs
from quality.fleet import ServerSettings, await_ready, running, sample_all
from quality.regression import regressions, unlike_stock
from quality.rows import chosen_densities, row_of, table_of
from quality.sampling import WINDOW, Sample
from quality.variants import DENSE, Variant, save_plans
from quality.workload import Workload, make_workload
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from shplb.container import write_atomically
from shplb.errors import UserError
from shplb.plan import ServingPlan
from shplb.processes import interrupt_on_sigterm
from shplb.profile import HeadProfile
from shplb.texts.encoding import encode_text

_start = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _start:4.0f} s] {text}", file=sys.stderr, flush=True)


class Run:
    """Workloads, plans and what was found so far."""

    def __init__(self, args: Arguments) -> None:
        self.args = args
        self.encoder = AutoTokenizer.from_pretrained(args.model_path)
        # The first call may drop settings of the tokenizer's file, which no thread may do while others encode.
        encode_text(self.encoder, "")
        self.workloads: dict[int, Workload] = {}
        self.samples: dict[tuple[int, str], Sample] = {}
        self.rows: dict[tuple[int, str], dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        stock_only = all(variant.is_stock for variant in args.variants)
        self.profile = None if stock_only else HeadProfile.load(args.profile)
        self.plans: dict[str, ServingPlan] = {}
        if self.profile is not None:
            self.plans = save_plans(args.variants, self.profile, max(args.tokens), args.work)

    def prepare(self) -> None:
        """Make all prompts; while the first servers start."""
        args = self.args
        corpus = Corpus.shipped() if args.texts is None else Corpus.of_user(args.texts)
        materials = Materials(corpus, read_questions(args.questions or SHIPPED))
        for tokens in args.tokens:
            if tokens not in self.workloads:
                made = make_workload(tokens, args.tasks, args.amounts, self.encoder, materials, args.texts)
                self.workloads[tokens] = made
                for sentence in made.left_out:
                    say(f"left out: {sentence}")
                say(f"prompts of {tokens} tokens are made")

    def serve(self, variants: list[Variant]) -> None:
        """Start the servers of ``variants``, ask them everything, stop them."""
        args = self.args
        settings = ServerSettings(
            args.model_path, args.device, args.gpus, args.work, args.pool_tokens, args.server_options, args.timeout_s
        )
        with running(variants, settings) as servers:
            self.prepare()
            failed = await_ready(servers, args.timeout_s)
            for name, reason in failed.items():
                self._fail(name, reason)
            say(f"{len(servers) - len(failed)} of {len(servers)} servers are ready")
            for tokens in args.tokens:
                asked = {name: server for name, server in servers.items() if name not in self.failed}
                if not asked:
                    return
                keep = partial(self._keep, tokens)
                sample_all(asked, self.workloads[tokens], self.encoder, DENSE, keep, self._fail)

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        say(reason)
        if name == DENSE:
            self.write()
            raise UserError(f"stock SGLang must answer, for all else is compared with it: {reason}")

    def _keep(self, tokens: int, name: str, sample: Sample) -> None:
        """Its row, and where it is stock's, the rows of all that have answered before; the result as it is now."""
        say(f"{name} at {tokens} tokens: {sample.wall_s:.0f} s" if not sample.ttft_ms else f"{name} is timed")
        self.samples[tokens, name] = sample
        file = self.args.work / f"{name}.{tokens}.replies.json"
        file.write_text(json.dumps(sample.replies, indent=1))
        dense = self.samples.get((tokens, DENSE))
        if dense is None:
            return
        for variant in self.args.variants:
            own = self.samples.get((tokens, variant.name))
            waited = name == DENSE and not sample.ttft_ms
            if own is not None and (waited or name in (variant.name, variant.twin)):
                plan, twin = self.plans.get(variant.name), self.samples.get((tokens, variant.twin))
                self.rows[tokens, variant.name] = row_of(variant, plan, tokens, own, dense, twin)
        self.write()

    def result(self) -> dict[str, Any]:
        args = self.args
        return provenance(args.settings) | {
            "bench": "quality",
            "format": 3,
            "model": args.model_name or args.model_path.name,
            "tokens": args.tokens,
            "prompts_per_task": args.amounts.prompts,
            "texts": {tokens: [text.name for text in each.texts] for tokens, each in self.workloads.items()},
            "text_tokens": {tokens: len(each.texts[0].token_ids) for tokens, each in self.workloads.items()},
            "left_out": [sentence for each in self.workloads.values() for sentence in each.left_out],
            "nll_on": f"second half of each text, windows of {WINDOW} tokens",
            "profile_documents": list(self.profile.documents) if self.profile else [],
            "failed": self.failed,
            "missing": self.missing(),
            "chosen": chosen_densities(self.in_order()),
            "rows": self.in_order(),
        }

    def asked(self) -> list[tuple[int, str]]:
        return [(tokens, variant.name) for tokens in self.args.tokens for variant in self.args.variants]

    def in_order(self) -> list[dict[str, Any]]:
        """Rows in the order in which they were asked for."""
        return [self.rows[key] for key in self.asked() if key in self.rows]

    def missing(self) -> list[str]:
        """What was asked for and has no answer, of a run that was cut off."""
        return [f"{name} at {tokens} tokens" for tokens, name in self.asked() if (tokens, name) not in self.rows]

    def write(self) -> None:
        write_atomically(self.args.out, json.dumps(self.result(), indent=1).encode())


def print_table(rows: list[dict[str, Any]]) -> None:
    header, *lines = table_of(rows)
    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(name, no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=200).print(table, highlight=False)


def judge_run(run: Run, reference: dict[str, Any] | None) -> list[str]:
    """What went wrong, a sentence each: servers that failed, density 1 unlike stock, quality behind a reference."""
    result = run.result()
    found = [f"{name} failed." for name in run.failed] + unlike_stock(result)
    if reference is not None:
        try:
            found += regressions(result, reference)
        except ValueError as error:
            found.append(str(error))
    return found


def main() -> None:
    interrupt_on_sigterm()
    args = arguments(__doc__ or "")
    reference = json.loads(args.check.read_text()) if args.check else None  # --out may be the same file
    try:
        provide_inputs(args)
        run = Run(args)
        for first in range(0, len(args.variants), args.parallel):
            run.serve(args.variants[first : first + args.parallel])
    except (UserError, ValueError) as error:
        sys.exit(f"bench_quality: {error}")
    print_table(run.in_order())
    print(f"wrote {args.out}")
    if complaints := judge_run(run, reference):
        sys.exit("\n".join(complaints))


if __name__ == "__main__":
    main()
