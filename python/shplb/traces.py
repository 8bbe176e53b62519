# SPDX-License-Identifier: Apache-2.0
"""Request traces for the simulator: from SGLang's serving benchmark, from lines of JSON, or made of random numbers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Longest prompt and longest answer of a request; above the context of every supported model.
MAX_TOKENS = 1 << 20
MAX_REQUESTS = 1 << 20
_MAX_SECONDS = 1e9  # where a double still tells microseconds apart
_LEAST_RATE = 1e-3  # requests per second


class TraceError(ValueError):
    """A trace that can't be used; the message is one sentence with the file and the line."""


@dataclass(frozen=True)
class Trace:
    """Requests in the order in which they are sent.

    Attributes:
        arrival_s: float64 [num_requests], ascending, seconds; when the client has the request.
        input_tokens, output_tokens: int64 [num_requests], prompt length (cached part included) and answer length.
        prefix_tokens: int64 [num_requests], leading prompt tokens that the radix cache holds.
        concurrency: at most so many requests are in the server; the client holds back the others. None: no limit.
        measured_ttft_s: float64 [num_requests], what the server took when the trace was recorded; None if unknown.
        origin: where the requests come from, in a few words.
    """

    arrival_s: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    prefix_tokens: np.ndarray
    origin: str
    concurrency: int | None = None
    measured_ttft_s: np.ndarray | None = None


def read_trace(path: Path) -> Trace:
    """Read a file of JSON lines, in either of two forms, told apart by their keys.

    * ``{"arrival_s": 0.5, "input_tokens": 4096, "output_tokens": 128}``, one request a line, in any order; the optional
      ``prefix_tokens`` says how many prompt tokens are cached.
    * Output of ``python -m sglang.benchmark.serving --output-file F --output-details``, one run a line; the last is
      taken. The file has no arrival times: they are drawn from its request rate, as the benchmark did (``poisson``),
      and its ``max_concurrency`` is kept. Failed requests are left out. Cached tokens are known with
      ``--cache-report``.

    Raises:
        TraceError: in one sentence with the line number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path} can't be read ({error}): give a trace of JSON lines.") from None
    records = [
        (f"{path}, line {number}", _parse(f"{path}, line {number}", text))
        for number, text in enumerate(lines, start=1)
        if text.strip()
    ]
    if not records:
        raise TraceError(f"{path} holds no requests: give a trace with one JSON object a line.")
    if "arrival_s" not in records[0][1] and "request_rate" in records[0][1]:
        return _bench_trace(*records[-1])
    return _line_trace(path, records)


def synthetic_trace(text: str) -> Trace:
    """``requests=200,rate=2,input=32768,output=128,seed=0``: Poisson arrivals, lengths fixed or uniform in LOW-HIGH.

    ``output`` is 1 and ``seed`` 0 unless given; ``rate`` is in requests per second, ``inf`` sends all at once.

    Raises:
        TraceError: in one sentence.
    """
    options = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    known = {"requests", "rate", "input", "output", "seed"}
    if text.count("=") != len(options) or len(text.split(",")) != len(options) or not set(options) <= known:
        options = {}
    if not {"requests", "rate", "input"} <= set(options):
        raise TraceError(
            f"--synthetic is '{text}', expected something like requests=200,rate=2,input=32768,output=128,seed=0."
        )
    count = _whole(options["requests"], "requests", 1, MAX_REQUESTS)
    rng = np.random.default_rng(_whole(options.get("seed", "0"), "seed", 0, 2**63 - 1))
    return Trace(
        arrival_s=poisson(rng, count, _rate(options["rate"])),
        input_tokens=_lengths(rng, count, "input", options["input"]),
        output_tokens=_lengths(rng, count, "output", options.get("output", "1")),
        prefix_tokens=np.zeros(count, dtype=np.int64),
        origin=f"synthetic: {text}",
    )


def poisson(rng: np.random.Generator, count: int, rate: float) -> np.ndarray:
    """float64 [count]: arrival times of a Poisson process, the first at 0; all 0 where ``rate`` is infinite."""
    gaps = rng.exponential(1.0, count) / rate
    gaps[0] = 0.0
    return np.cumsum(gaps)


def _parse(place: str, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise TraceError(f"{place} is not a JSON object: give one object a line.")
    return record


def _line_trace(path: Path, records: list[tuple[str, dict[str, Any]]]) -> Trace:
    rows = []
    for place, record in records:
        arrival = record.get("arrival_s")
        if isinstance(arrival, bool) or not isinstance(arrival, int | float) or not 0 <= arrival <= _MAX_SECONDS:
            raise TraceError(f"{place}: arrival_s is {arrival!r}, expected seconds from 0 to {_MAX_SECONDS:g}.")
        length = _tokens(place, record, "input_tokens", 1, MAX_TOKENS)
        output = _tokens(place, record, "output_tokens", 1, MAX_TOKENS)
        prefix = _tokens(place, record, "prefix_tokens", 0, length, default=0)
        rows.append((float(arrival), length, output, prefix))
    rows.sort(key=lambda row: row[0])  # stable: requests of one time stay in the order of the file
    arrivals, lengths, outputs, prefixes = zip(*rows, strict=True)
    return Trace(
        arrival_s=np.array(arrivals),
        input_tokens=np.array(lengths, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        prefix_tokens=np.array(prefixes, dtype=np.int64),
        origin=f"{path.name}: {len(rows)} requests with arrival times",
    )


def _bench_trace(place: str, record: dict[str, Any]) -> Trace:
    rate, limit = record.get("request_rate"), record.get("max_concurrency")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate >= _LEAST_RATE:
        raise TraceError(
            f"{place}: request_rate is {rate!r}, from which arrival times can't be drawn: "
            'give lines of {"arrival_s": .., "input_tokens": .., "output_tokens": ..}.'
        )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise TraceError(f"{place}: max_concurrency is {limit!r}, expected null or a positive number.")
    ttfts = record.get("ttfts")
    if not isinstance(ttfts, list) or not all(isinstance(value, int | float) for value in ttfts):
        raise TraceError(f"{place} has no request lengths: run the benchmark again with --output-details.")
    # Failed requests have no tokens and a time of 0; the server may never have seen them.
    good = [index for index, ttft in enumerate(ttfts) if 0 < ttft < math.inf]
    if not good:
        raise TraceError(f"{place}: none of {len(ttfts)} requests succeeded: repeat the benchmark.")
    arrivals = poisson(np.random.default_rng(0), len(ttfts), float(rate))
    inputs = _column(place, record, "input_lens", good, len(ttfts), low=1)
    cached = "cached_tokens" in record
    return Trace(
        arrival_s=arrivals[good],
        input_tokens=inputs,
        output_tokens=np.maximum(_column(place, record, "output_lens", good, len(ttfts), low=0), 1),
        prefix_tokens=_column(place, record, "cached_tokens", good, len(ttfts), low=0) if cached else 0 * inputs,
        origin=f"sglang.benchmark.serving: {len(good)} requests, arrivals drawn anew at {rate:g}/s"
        + (f", at most {limit} at a time" if limit else ""),
        concurrency=limit,
        measured_ttft_s=np.array(ttfts, dtype=np.float64)[good],
    )


def _column(
    place: str, record: Mapping[str, Any], name: str, indices: list[int], count: int, *, low: int
) -> np.ndarray:
    """int64 [len(indices)]: entries of the list ``name``, checked."""
    values = record.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise TraceError(f"{place}: {name} is not a list of {count} numbers: run the benchmark again.")
    return np.array([_check(f"{place}: {name}[{i}]", values[i], low, MAX_TOKENS) for i in indices], dtype=np.int64)


def _tokens(place: str, record: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    return _check(f"{place}: {name}", record.get(name, default), low, high)


def _check(what: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TraceError(f"{what} is {value!r}, expected a whole number from {low} to {high}.")
    return value


def _whole(text: str, name: str, low: int, high: int) -> int:
    try:
        return _check(f"--synthetic {name}", int(text), low, high)
    except TraceError:
        raise
    except ValueError:
        raise TraceError(f"--synthetic {name} is '{text}', expected a whole number from {low} to {high}.") from None


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not rate >= _LEAST_RATE:
        raise TraceError(f"--synthetic rate is '{text}', expected requests per second from {_LEAST_RATE:g}, or inf.")
    return rate


def _lengths(rng: np.random.Generator, count: int, name: str, text: str) -> np.ndarray:
    parts = [_whole(part, name, 1, MAX_TOKENS) for part in text.split("-")]
    if len(parts) > 2 or parts[0] > parts[-1]:
        raise TraceError(
            f"--synthetic {name} is '{text}', expected tokens such as 4096, or LOW-HIGH such as 1024-8192."
        )
    return rng.integers(parts[0], parts[-1] + 1, count)
