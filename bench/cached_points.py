# SPDX-License-Identifier: Apache-2.0
"""Points of the serving bench with a cached prefix: a few new tokens on a long prompt that the radix cache holds.

SGLang's benchmark has no dataset with exact lengths of cached and new tokens, so these requests are sent and timed
here, one at a time, through ``/generate`` with streaming. Time to first token is from sending the request to its first
event.
"""

import http.client
import json
import re
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from serving_points import PointFailedError

#: Requests of a point, so many that their median tells 2 %, and those before them that are not measured.
REQUESTS, WARM_UP = 11, 2
#: What a row says of how it was measured.
CLIENT = "streamed /generate, one request at a time"


class CachedPoint(NamedTuple):
    new_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Streamed:
    """Seconds from sending a request to each of its events, and the last event's ``meta_info``."""

    events_s: list[float]
    meta: dict[str, Any]


def parse_cached(text: str) -> list[CachedPoint]:
    """``64x120000,512x120000`` (new x cached tokens); ValueError in one sentence for anything else."""
    points = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part)
        if match is None:
            raise ValueError(f"--cached holds {part}, expected new x cached tokens such as 64x120000.")
        points.append(CachedPoint(int(match[1]), int(match[2])))
    return points


def draw_prompts(
    points: list[CachedPoint], index: int, vocabulary: int, seed: int
) -> tuple[list[int], list[list[int]]]:
    """(prefix, prompts) of ``points[index]``: random tokens, the same prefix for every point of so many cached tokens.

    No two prompts go on alike behind the prefix, or the radix cache would hold more of one than the prefix.
    """
    point, count = points[index], WARM_UP + REQUESTS
    shared = np.random.default_rng([seed, point.cached_tokens])
    prefix = shared.integers(vocabulary, size=point.cached_tokens).tolist()
    firsts = shared.permutation(vocabulary)[index * count : (index + 1) * count]
    if len(firsts) < count:
        raise PointFailedError(
            f"{len(points)} cached points need {count} tokens each, the vocabulary has {vocabulary}."
        )
    rest = np.random.default_rng([seed, *point, index]).integers(vocabulary, size=(count, point.new_tokens - 1))
    return prefix, [[*prefix, int(first), *tail] for first, tail in zip(firsts, rest.tolist(), strict=True)]


def generate_body(prompt: list[int], output_tokens: int, *, stream: bool) -> dict[str, Any]:
    sampling = {"max_new_tokens": output_tokens, "temperature": 0.0, "ignore_eos": True}
    return {"input_ids": prompt, "sampling_params": sampling, "stream": stream}


def send_streamed(port: int, body: dict[str, Any], timeout_s: float) -> Streamed:
    """Send one request and read its events; the text of the request is made before the clock starts."""
    data = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    events_s, last = [], b""
    try:
        start = time.perf_counter()
        connection.request("POST", "/generate", data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                events_s.append(time.perf_counter() - start)
                last = line
    finally:
        connection.close()
    if not last:
        raise PointFailedError(f"a streamed request was answered {answer.status} without an event.")
    found = json.loads(last.removeprefix(b"data: "))
    if "error" in found:
        raise PointFailedError(f"a streamed request failed: {found['error']}.")
    return Streamed(events_s, found["meta_info"])


def cached_point_of(streams: list[Streamed], point: CachedPoint, page_size: int, output_tokens: int) -> dict[str, Any]:
    """The numbers of a point; PointFailedError where not exactly the prefix, in whole pages, came from the cache."""
    whole = point.cached_tokens // page_size * page_size
    expected = {"prompt_tokens": sum(point), "cached_tokens": whole, "completion_tokens": output_tokens}
    for stream in streams:
        for name, value in expected.items():
            if stream.meta[name] != value:
                raise PointFailedError(
                    f"{name} is {stream.meta[name]}, expected {value}, at {point.new_tokens} tokens on "
                    f"{point.cached_tokens} cached ones."
                )
    ttft_ms = [1000 * stream.events_s[0] for stream in streams]
    gaps_ms = np.concatenate([1000 * np.diff(stream.events_s) for stream in streams])
    return {
        "new_tokens": point.new_tokens,
        "cached_tokens": whole,
        "ttft_p50_ms": round(float(np.median(ttft_ms)), 3),
        "ttft_p99_ms": round(float(np.percentile(ttft_ms, 99)), 3),
        "itl_p50_ms": round(float(np.median(gaps_ms)), 3) if gaps_ms.size else None,
        "ttft_ms": [round(value, 3) for value in ttft_ms],
        "prompts": len(streams),
        "client": CLIENT,
    }
