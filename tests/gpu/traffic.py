# SPDX-License-Identifier: Apache-2.0
"""Many clients at once: short and long prompts, shared beginnings, conversations, and requests that are given up."""

import json
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from real_server import Answer, ask, greedy_body
from transformers import AutoTokenizer

from shplb.sglang.launch import Server, ServerFailedError
from shplb.texts import held_out_documents

#: Share of each kind among clients; a conversation sends two requests.
KINDS = {"short": 0.3, "long": 0.2, "shared": 0.2, "chat": 0.2, "aborted": 0.05, "hung up": 0.05}
_SHARED_STARTS = 5


@dataclass(frozen=True)
class Client:
    """What one client sends; ``follow_up``: text after the first answer; ``patience_s``: until it gives up."""

    kind: str
    prompt: list[int]
    new_tokens: int
    follow_up: list[int] = field(default_factory=list)
    patience_s: float = 0.0


@dataclass(frozen=True)
class Exchange:
    prompt: list[int]
    new_tokens: int
    answer: Answer


class Texts:
    """Pieces of real held-out text, at random places."""

    def __init__(self, model: Path, longest_tokens: int, seed: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model)
        domains = ["prose", "code", "manual", "dialogue"]
        self._documents = [
            document.token_ids for document in held_out_documents(2 * longest_tokens, tokenizer, domains=domains)
        ]
        self.rng = np.random.default_rng(seed)

    def piece(self, length: int) -> list[int]:
        document = self._documents[self.rng.integers(len(self._documents))]
        start = int(self.rng.integers(len(document) - length))
        return document[start : start + length]


def make_clients(texts: Texts, num_requests: int, longest_tokens: int, long_answer_tokens: int) -> list[Client]:
    rng = texts.rng
    starts = [texts.piece(longest_tokens // 4) for _ in range(_SHARED_STARTS)]
    kinds = list(KINDS)
    clients: list[Client] = []
    requests = 0
    while requests < num_requests:
        kind = kinds[rng.choice(len(kinds), p=list(KINDS.values()))]
        lengths = (
            (long_answer_tokens // 2, long_answer_tokens) if rng.random() < 1 / 3 else (4, long_answer_tokens // 4)
        )
        new_tokens = int(rng.integers(*lengths))
        long_prompt = int(rng.integers(longest_tokens // 4, longest_tokens))
        prompt, follow_up, patience_s = texts.piece(long_prompt), [], 0.0
        if kind == "short":
            prompt = texts.piece(int(rng.integers(1, 128)))
        elif kind == "shared":
            prompt = starts[rng.integers(_SHARED_STARTS)] + texts.piece(int(rng.integers(1, longest_tokens // 4)))
        elif kind == "chat":
            prompt, follow_up = prompt[: longest_tokens // 2], texts.piece(int(rng.integers(1, longest_tokens // 4)))
        elif kind in ("aborted", "hung up"):
            patience_s, new_tokens = float(rng.uniform(0.02, 0.5)), long_answer_tokens
        clients.append(Client(kind, prompt, new_tokens, follow_up, patience_s))
        requests += 2 if kind == "chat" else 1
    return clients


def send_all(running: Server, clients: list[Client], concurrency: int) -> list[Exchange]:
    """All finished exchanges, in the order of clients; a conversation has two. Given up requests have none."""
    with ThreadPoolExecutor(concurrency) as threads:
        return [exchange for sent in threads.map(lambda client: _send(running, client), clients) for exchange in sent]


def _send(running: Server, client: Client) -> list[Exchange]:
    if client.kind == "aborted":
        _abort(running, client)
        return []
    if client.kind == "hung up":
        _hang_up(running, client)
        return []
    answer = ask(running, client.prompt, client.new_tokens, logprobs=False)
    exchanges = [Exchange(client.prompt, client.new_tokens, answer)]
    if client.follow_up:
        prompt = client.prompt + answer.tokens + client.follow_up
        exchanges.append(Exchange(prompt, client.new_tokens, ask(running, prompt, client.new_tokens, logprobs=False)))
    return exchanges


def _abort(running: Server, client: Client) -> None:
    rid = f"aborted-{id(client)}"
    abort = urllib.request.Request(
        f"{running.url}/abort_request", json.dumps({"rid": rid}).encode(), {"Content-Type": "application/json"}
    )
    timer = threading.Timer(client.patience_s, lambda: urllib.request.urlopen(abort, timeout=60).close())
    timer.start()
    try:
        found = running.post("/generate", greedy_body(client.prompt, client.new_tokens, rid=rid))
        assert found["meta_info"]["finish_reason"]["type"] in ("abort", "length")  # the latter when it was done before
    except ServerFailedError as error:
        assert "abort" in str(error).lower()  # noqa: PT017
    timer.join()


def _hang_up(running: Server, client: Client) -> None:
    body = json.dumps(greedy_body(client.prompt, client.new_tokens, stream=True)).encode()
    request = urllib.request.Request(f"{running.url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as stream:
        stream.readline()
        time.sleep(client.patience_s)
