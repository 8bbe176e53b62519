# SPDX-License-Identifier: Apache-2.0
"""Servers of the tests: started as users start them, asked over HTTP, and checked again when they end."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setting import SETTING, machine_options

from shplb.sglang.environment import PATH
from shplb.sglang.launch import Server

TOP_TOKENS = 5
#: SGLang's own switch for tests: decoding requests are retracted every so many steps, and not only when the pool is
#: full. One request alone is never retracted.
RETRACTION = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "10"}
# SGLang looks for the signal every 5 s, drains, and gives its schedulers 15 s.
_END_S = 45.0
# Its launcher ends its process tree, itself included, with SIGKILL: the last line of a shutdown without a fault.
_GOOD_CODES = (0, -signal.SIGKILL)
_FAULTS = re.compile(r"Traceback|memory leak|CUDA error|Scheduler hit an exception|died unexpectedly")


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt; ``top`` holds {token: log-probability} of the best tokens at every step."""

    tokens: list[int]
    top: list[dict[int, float]]
    prompt_tokens: int
    cached_tokens: int
    finish: str


@contextmanager
def serving(
    model: Path,
    log: Path,
    *options: str,
    plan: Path | None = None,
    tp_size: int = 1,
    forced: bool = False,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server that is ready; ``plan``: with S-HPLB. Without an error inside, it must also end well.

    forced: every prefill of more than one token takes the sparse path, whether or not that is faster.
    """
    ours = ["--enable-shplb", "--shplb-plan", str(plan)] if plan else SETTING.stock_options
    given = [*ours, "--skip-server-warmup", *machine_options(), *options]
    env = {**(env or {}), **({PATH: "sparse"} if forced else {})}
    with Server(model, log, tp_size=tp_size, device=SETTING.device, options=given, env=env) as running:
        running.wait_ready(600.0)
        yield running
        end(running)


def end(running: Server) -> None:
    """SIGTERM to the launcher alone, as a supervisor sends it; the log must be free of faults up to its last line."""
    os.kill(running.process.pid, signal.SIGTERM)
    try:
        code = running.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the server runs {_END_S:.0f} s after SIGTERM:\n{running.tail()}") from None
    faults = [line for line in read_log(running).splitlines() if _FAULTS.search(line)]
    assert code in _GOOD_CODES, f"exit code {code}:\n{running.tail()}"
    assert not faults, "\n".join(faults)


def read_log(running: Server) -> str:
    assert running.log is not None
    return running.log.read_text(errors="replace")


def count_retracted(running: Server) -> int:
    """Requests that lost their pages while they were decoding, and began again."""
    return sum(map(int, re.findall(r"#retracted_reqs: (\d+)", read_log(running))))


def greedy_body(prompt: list[int], new_tokens: int, **fields: Any) -> dict[str, Any]:
    sampling = {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return {"input_ids": prompt, "sampling_params": sampling} | fields


def ask(running: Server, prompt: list[int], new_tokens: int, *, logprobs: bool = True, **fields: Any) -> Answer:
    """A greedy continuation. Without log-probabilities: SGLang mixes only such requests into prefill batches."""
    if logprobs:
        fields |= {"return_logprob": True, "top_logprobs_num": TOP_TOKENS}
    return parse(running.post("/generate", greedy_body(prompt, new_tokens, **fields)))


def parse(found: dict[str, Any]) -> Answer:
    meta = found["meta_info"]
    steps = meta.get("output_top_logprobs") or []
    return Answer(
        tokens=list(found["output_ids"]),
        top=[{token: value for value, token, _ in step} for step in steps],
        prompt_tokens=meta["prompt_tokens"],
        cached_tokens=meta["cached_tokens"],
        finish=(meta["finish_reason"] or {}).get("type", ""),
    )


def used_tokens(running: Server) -> int:
    """Tokens of the KV pool that are neither free nor evictable: those of running requests, and leaked ones."""
    return int(running.get("/v1/loads")["loads"][0]["num_used_tokens"])


def wait_until_idle(running: Server, timeout_s: float = 60.0) -> None:
    """Until nothing runs or waits: an abandoned request ends a little after its client."""
    deadline = time.monotonic() + timeout_s
    while True:
        load = running.get("/v1/loads")["loads"][0]
        if not load["num_running_reqs"] and not load["num_waiting_reqs"]:
            return
        assert time.monotonic() < deadline, load
        time.sleep(0.2)
