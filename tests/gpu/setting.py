# SPDX-License-Identifier: Apache-2.0
"""Sizes of the server tests: on the GPU, and for a trial of the tests themselves on a machine without one."""

import os
import shlex
from dataclasses import dataclass, field

#: Set to 1, the server tests run on the CPU: small, in float32, on the first layers of the model.
TRIAL_VARIABLE = "SHPLB_SERVER_TRIAL"
#: Options that this machine's GPUs need in every server, as in a shell: "--disable-custom-all-reduce".
OPTIONS_VARIABLE = "SHPLB_SERVER_OPTIONS"


@dataclass(frozen=True)
class Setting:
    """Options of every server and sizes of every test.

    Attributes:
        near_tie: nats between the best token and another one, below which rounding may choose either.
        equal_options: of servers that must answer alike; rounding to float16 decides an eighth of bfloat16's ties.
        num_prompts: prompts that are compared with stock.
        longest_tokens: of these and of the mixed requests.
        new_tokens: greedy tokens that are compared for each prompt.
        long_answer_tokens: of a third of the mixed requests; only decoding fills a pool beyond what was foreseen.
        pool_tokens: KV pool of the servers that are put under pressure.
        full_pool_options: of the server whose pool one prompt fills.
        other_stock_options: of a stock server that computes the same in another order.
    """

    device: str
    near_tie: float
    num_prompts: int
    longest_tokens: int
    new_tokens: int
    num_requests: int
    concurrency: int
    long_answer_tokens: int
    pool_tokens: int
    options: list[str]
    full_pool_options: list[str]
    other_stock_options: list[str]
    equal_options: list[str] = field(default_factory=list)
    stock_options: list[str] = field(default_factory=list)


GPU = Setting(
    device="cuda",
    near_tie=0.05,
    num_prompts=200,
    longest_tokens=6000,
    new_tokens=4,
    num_requests=500,
    concurrency=32,
    long_answer_tokens=160,
    pool_tokens=24576,
    # With logits in bfloat16 every sixteenth of a nat is a tie; in float32 the gap between two tokens is what it is.
    options=["--dtype", "bfloat16", "--enable-fp32-lm-head", "--chunked-prefill-size", "2048",
             "--cuda-graph-max-bs", "32"],
    # One row of the request table is as long as the context, and its bytes come on top of the pool's.
    full_pool_options=["--mem-fraction-static", "0.9", "--max-running-requests", "8", "--cuda-graph-max-bs", "8"],
    # Another kernel than those that SGLang chooses itself on any of these GPUs.
    other_stock_options=["--attention-backend", "triton"],
    equal_options=["--dtype", "float16"],
)  # fmt: skip

TRIAL = Setting(
    device="cpu",
    near_tie=0.01,
    num_prompts=8,
    longest_tokens=600,
    new_tokens=4,
    num_requests=12,
    concurrency=4,
    long_answer_tokens=40,
    pool_tokens=1024,
    options=["--dtype", "float32", "--chunked-prefill-size", "512"],
    full_pool_options=["--dtype", "float32", "--max-total-tokens", "3000", "--context-length", "4096"],
    other_stock_options=["--page-size", "64"],
    # SGLang's own choice of a backend needs AMX, and its own pool would take nearly all memory.
    stock_options=["--attention-backend", "torch_native", "--max-total-tokens", "8000"],
)  # fmt: skip


def is_trial() -> bool:
    return os.environ.get(TRIAL_VARIABLE) == "1"


def machine_options() -> list[str]:
    return shlex.split(os.environ.get(OPTIONS_VARIABLE, ""))


SETTING = TRIAL if is_trial() else GPU
