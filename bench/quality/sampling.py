# SPDX-License-Identifier: Apache-2.0
"""What one server answers to a workload, through SGLang's native HTTP API."""

import statistics
import time
from typing import Any

import msgspec
from long_tasks import Example, score
from long_tasks.conversation import NEW_TOKENS, NUM_TURNS, Conversation

from quality.workload import MULTI_TURN, Workload
from shplb.quality.measurement import WINDOW, window_means
from shplb.sglang.launch import Server
from shplb.texts import Document
from shplb.texts.encoding import Encoder


class Sample(msgspec.Struct):
    """Answers of one server at one length.

    scores: per task, one number in [0, 1] per prompt. nll: per text, mean NLL of windows of 256 tokens of its second
    half. cached_tokens: prompt tokens of later turns that came from the prefix cache, and all of them. path: prefill
    steps by path and the computed density, of everything but timed prompts; empty for stock.
    """

    scores: dict[str, list[float]]
    replies: dict[str, list[str]]
    nll: dict[str, list[float]]
    cached_tokens: tuple[int, int] = (0, 0)
    path: dict[str, float | int | None] = {}
    ttft_ms: list[float] = []
    wall_s: float = 0.0


def take_sample(server: Server, workload: Workload, encoder: Encoder, *, sparse: bool) -> Sample:
    """Ask everything but the timed prompts."""
    start, before = time.monotonic(), _counters(server) if sparse else {}
    sample = Sample({}, {}, {})
    for task, found in workload.examples.items():
        replies = _generate(server, [each.token_ids for each in found], found[0].new_tokens)
        sample.replies[task] = [reply["text"] for reply in replies]
        sample.scores[task] = [score_of(each, reply["text"]) for each, reply in zip(found, replies, strict=True)]
    if workload.conversations:
        _talk(server, workload.conversations, encoder, sample)
    server.flush_cache()
    for text in workload.texts:
        sample.nll[text.name] = _windows(server, text)
    server.flush_cache()
    if sparse:
        sample.path = _path(before, _counters(server))
    sample.wall_s = time.monotonic() - start
    return sample


def score_of(example: Example, reply: str) -> float:
    return score(example.task, reply, example.message.answers)


def time_prompts(server: Server, prompts: list[list[int]]) -> list[float]:
    """Milliseconds to the first token, one prompt at a time, nothing cached; the first prompt only warms up."""
    found = []
    for token_ids in prompts:
        server.flush_cache()
        start = time.perf_counter()
        server.post("/generate", _body([token_ids], 1))
        found.append(1000 * (time.perf_counter() - start))
    return found[1:]


def median_ttft_ms(sample: Sample) -> float | None:
    return round(statistics.median(sample.ttft_ms), 3) if sample.ttft_ms else None


def _talk(server: Server, talks: list[Conversation], encoder: Encoder, sample: Sample) -> None:
    """Conversations one after the other, so that what a turn finds in the cache is the turn before it."""
    cached = later = 0
    sample.scores[MULTI_TURN], sample.replies[MULTI_TURN] = [], []
    for talk in talks:
        replies: list[str] = []
        right = 0
        for turn in range(NUM_TURNS):
            (answer,) = _generate(server, [talk.token_ids(encoder, replies)], NEW_TOKENS)
            replies.append(answer["text"])
            right += talk.answers[turn] in answer["text"]
            if turn:
                cached += answer["meta_info"]["cached_tokens"]
                later += answer["meta_info"]["prompt_tokens"]
        sample.scores[MULTI_TURN].append(right / NUM_TURNS)
        sample.replies[MULTI_TURN].append("\n".join(replies))
    sample.cached_tokens = cached, later


def _body(batch: list[list[int]], new_tokens: int) -> dict[str, Any]:
    return {"input_ids": batch, "sampling_params": {"temperature": 0.0, "max_new_tokens": new_tokens}}


def _generate(server: Server, batch: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Greedy replies to prompts that are sent together, so that the server batches them as it likes."""
    return list(server.post("/generate", _body(batch, new_tokens)))


def _windows(server: Server, text: Document) -> list[float]:
    """Mean NLL of windows of the second half of a text."""
    start = len(text.token_ids) // 2 // WINDOW * WINDOW
    body = _body([text.token_ids], 1) | {"return_logprob": True, "logprob_start_len": start - 1}
    (answer,) = server.post("/generate", body)
    return [float(mean) for mean in window_means(answer["meta_info"]["input_token_logprobs"])]


def _counters(server: Server) -> dict[str, Any]:
    return server.shplb_state()


def _path(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float | int | None]:
    keys = ("sparse_steps", "dense_steps", "computed_row_pages", "causal_row_pages")
    sparse, dense, computed, causal = (after[key] - before[key] for key in keys)
    return {"sparse_steps": sparse, "dense_steps": dense, "density": computed / causal if causal else None}
