# SPDX-License-Identifier: Apache-2.0
"""NLL of held-out texts and retrieval answers under a running server, through SGLang's HTTP API."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shplb.errors import UserError
from shplb.plan import ServingPlan
from shplb.sglang.launch import Server
from shplb.texts import Document, RetrievalPrompt

#: Tokens whose mean NLL is one observation.
WINDOW = 256

_CHUNK_TOKENS = 3072  # whole query blocks of 128 and of 192 rows


class NotSparseError(UserError):
    """A plan under which no step was sparse, so that there is nothing to compare."""


@dataclass(frozen=True)
class Sample:
    """What one server made of the texts and prompts.

    windows: float64 [num_windows], mean NLL of every window of 256 tokens in the second half of each text, nats.
    answer_nll: float64 [num_prompts], mean NLL of the answer's tokens.
    right: bool [num_prompts], every answer token was the most likely one.
    """

    windows: np.ndarray
    answer_nll: np.ndarray
    right: np.ndarray


def measure(
    plan: ServingPlan | None,
    model_path: Path,
    work: Path,
    texts: Sequence[Document],
    prompts: Sequence[RetrievalPrompt],
    *,
    name: str,
    device: str,
    tp_size: int,
    attention_backend: str = "",
) -> Sample:
    """Start a server with ``plan`` (None: stock dense SGLang) and take a sample; log and plan go to ``work``.

    attention_backend: of dense steps and of decode, "" for SGLang's own choice.

    Raises:
        NotSparseError: no step was sparse.
        ServerFailedError: the server ended.
    """
    longest = max(len(text.token_ids) for text in texts)
    options = ["--max-total-tokens", str(longest + 8192), "--disable-radix-cache", "--skip-server-warmup"]
    options += ["--chunked-prefill-size", str(_CHUNK_TOKENS)]
    if device == "cpu" and plan is None:
        attention_backend = attention_backend or "torch_native"  # SGLang's own choice needs AMX
    options += ["--attention-backend", attention_backend] if attention_backend else []
    if plan is not None:
        path = work / f"{name}.plan.safetensors"
        plan.save(path)
        options += ["--enable-shplb", "--shplb-plan", str(path)]
    log = work / f"{name}.log"
    with Server(model_path, log, tp_size=tp_size, device=device, options=options) as server:
        server.wait_ready()
        windows = np.concatenate([_windows(server, text.token_ids) for text in texts])
        answers = [_answer(server, prompt) for prompt in prompts]
        if plan is not None and not server.shplb_state()["sparse_steps"]:
            raise NotSparseError(f"no step of {name} was sparse, since dense is predicted to be faster; see {log}.")
    return Sample(windows, np.array([nll for nll, _ in answers]), np.array([right for _, right in answers], dtype=bool))


def _windows(server: Server, tokens: list[int]) -> np.ndarray:
    start = len(tokens) // 2 // WINDOW * WINDOW
    return window_means(_logprobs(server, tokens, start)["input_token_logprobs"])


def window_means(entries: Sequence[Sequence[Any]]) -> np.ndarray:
    """float64 [num_windows], mean NLL of windows of 256 tokens, from SGLang's ``input_token_logprobs``.

    The first entry has no log-probability; the last tokens, too few for a window, are left out.
    """
    nll = -np.array([value for value, *_ in entries[1:]])
    return np.asarray(nll[: len(nll) // WINDOW * WINDOW].reshape(-1, WINDOW).mean(axis=1))


def _answer(server: Server, prompt: RetrievalPrompt) -> tuple[float, bool]:
    head = prompt.token_ids + prompt.lead_in_token_ids
    info = _logprobs(server, head + prompt.answer_token_ids, len(head) - 1)
    best = [top[0][1] for top in info["input_top_logprobs"][1:]]
    nll = -float(np.mean([value for value, _, _ in info["input_token_logprobs"][1:]]))
    return nll, best == prompt.answer_token_ids


def _logprobs(server: Server, tokens: list[int], start: int) -> dict[str, Any]:
    body = {
        "input_ids": tokens,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": 1,
    }
    return dict(server.post("/generate", body)["meta_info"])
