# SPDX-License-Identifier: Apache-2.0
"""Traces: three sources, one form; a bad one is one sentence that names the line."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import is_one_sentence

from shplb.traces import TraceError, read_trace, synthetic_trace

_LINE = {"arrival_s": 1.5, "input_tokens": 100, "output_tokens": 3}
_RUN: dict[str, Any] = {
    "backend": "sglang", "request_rate": 2.0, "max_concurrency": None, "input_lens": [100, 200, 300],
    "output_lens": [5, 0, 7], "ttfts": [0.1, 0.0, 0.3], "errors": ["", "timeout", ""],
}  # fmt: skip


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(record if isinstance(record, str) else json.dumps(record) for record in records) + "\n")
    return path


def test_lines(tmp_path: Path) -> None:
    early = {"arrival_s": 0, "input_tokens": 64, "output_tokens": 1, "prefix_tokens": 64, "user": "kept out"}
    trace = read_trace(write(tmp_path / "t", _LINE, "", early, _LINE | {"input_tokens": 7}))
    assert trace.arrival_s.tolist() == [0.0, 1.5, 1.5]
    assert trace.input_tokens.tolist() == [64, 100, 7]
    assert trace.output_tokens.tolist() == [1, 3, 3]
    assert trace.prefix_tokens.tolist() == [64, 0, 0]
    assert (trace.concurrency, trace.measured_ttft_s) == (None, None)


def test_benchmark_output(tmp_path: Path) -> None:
    """The last run of the file, without its failed request; arrivals are drawn for all that were sent."""
    last = _RUN | {"max_concurrency": 2, "cached_tokens": [64, 0, 128]}
    trace = read_trace(write(tmp_path / "t", {"request_rate": 9.0, "input_lens": [1]}, last))
    assert trace.input_tokens.tolist() == [100, 300]
    assert trace.output_tokens.tolist() == [5, 7]
    assert trace.prefix_tokens.tolist() == [64, 128]
    assert trace.measured_ttft_s is not None
    assert trace.measured_ttft_s.tolist() == [0.1, 0.3]
    assert trace.concurrency == 2
    assert trace.arrival_s[0] == 0 < trace.arrival_s[1]
    other = read_trace(write(tmp_path / "t", _RUN | {"request_rate": 4.0}))
    assert other.prefix_tokens.tolist() == [0, 0]
    np.testing.assert_allclose(trace.arrival_s, 2 * other.arrival_s)
    at_once = read_trace(write(tmp_path / "t", _RUN | {"request_rate": float("inf")}))
    assert at_once.arrival_s.tolist() == [0.0, 0.0]


def test_benchmark_fields_are_those_of_the_installed_sglang() -> None:
    spec = find_spec("sglang")  # an import would take seconds and needs an environment
    if spec is None:
        pytest.skip("no sglang")
    source = (Path(str(spec.origin)).parent / "benchmark" / "serving.py").read_text()
    for name in (*_RUN, "cached_tokens"):
        assert f'"{name}": ' in source or f'"{name}"] = ' in source, name


def test_synthetic() -> None:
    trace = synthetic_trace("requests=4000,rate=2,input=100-200,output=7,seed=3")
    assert trace.arrival_s[0] == 0
    assert np.all(np.diff(trace.arrival_s) > 0)
    assert np.diff(trace.arrival_s).mean() == pytest.approx(0.5, rel=0.05)
    assert (trace.input_tokens.min(), trace.input_tokens.max()) == (100, 200)
    assert set(trace.output_tokens) == {7}
    again = synthetic_trace("seed=3,requests=4000,rate=2,input=100-200,output=7")
    assert again.arrival_s.tobytes() == trace.arrival_s.tobytes()
    assert again.input_tokens.tobytes() == trace.input_tokens.tobytes()
    assert synthetic_trace("requests=4,rate=2,input=5,seed=4").arrival_s[1] != trace.arrival_s[1]
    assert synthetic_trace("requests=3,rate=inf,input=5").arrival_s.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([""], "holds no requests"),
        (["{"], "line 1 is not a JSON object"),
        ([_LINE, "[]"], "line 2 is not a JSON object"),
        ([_LINE, "", _LINE | {"arrival_s": -1}], "line 3: arrival_s is -1"),
        ([_LINE | {"arrival_s": float("nan")}], "line 1: arrival_s is nan"),
        ([_LINE | {"arrival_s": 1e10}], "line 1: arrival_s is 10000000000.0, expected seconds from 0 to"),
        ([_LINE | {"arrival_s": "0"}], "line 1: arrival_s is '0'"),
        ([{"input_tokens": 5}], "line 1: arrival_s is None"),
        ([_LINE | {"input_tokens": 0}], "line 1: input_tokens is 0"),
        ([_LINE | {"input_tokens": 1 << 21}], "input_tokens is 2097152, expected a whole number from 1 to 1048576"),
        ([_LINE, _LINE | {"output_tokens": 1.5}], "line 2: output_tokens is 1.5"),
        ([_LINE | {"prefix_tokens": 101}], "prefix_tokens is 101, expected a whole number from 0 to 100"),
        ([_RUN | {"ttfts": None}], "line 1 has no request lengths: run the benchmark again with --output-details"),
        ([_RUN | {"request_rate": "trace"}], "request_rate is 'trace', from which arrival times can't be drawn"),
        ([_RUN | {"request_rate": 0}], "request_rate is 0"),
        ([_RUN | {"max_concurrency": 0}], "max_concurrency is 0"),
        ([_RUN | {"ttfts": [0, 0, 0]}], "none of 3 requests succeeded"),
        ([_RUN | {"ttfts": [0.1, "x", 0]}], "has no request lengths"),
        ([_RUN | {"input_lens": [5]}], "input_lens is not a list of 3 numbers"),
        ([_RUN, _RUN | {"input_lens": [5, 5, None]}], r"line 2: input_lens\[2\] is None"),
    ],
)
def test_bad_files(tmp_path: Path, records: list[object], message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(write(tmp_path / "t", *records))
    assert is_one_sentence(caught.value), caught.value
    assert str(tmp_path / "t") in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(TraceError, match="can't be read"):
            read_trace(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requests=5", "expected something like"),
        ("requests", "expected something like"),
        ("requests=5,rate=1,input=5,input=6", "expected something like"),
        ("requests=5,rate=1,input=5,prompts=6", "expected something like"),
        ("requests=0,rate=1,input=5", "requests is 0, expected a whole number from 1"),
        ("requests=x,rate=1,input=5", "requests is 'x'"),
        ("requests=5,rate=0,input=5", "rate is '0'"),
        ("requests=5,rate=1e-9,input=5", "rate is '1e-9'"),
        ("requests=5,rate=nan,input=5", "rate is 'nan'"),
        ("requests=5,rate=1,input=9-5", "input is '9-5'"),
        ("requests=5,rate=1,input=-5", "input is ''"),
        ("requests=5,rate=1,input=5,seed=-1", "seed is -1"),
    ],
)
def test_bad_synthetic(text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        synthetic_trace(text)
    assert is_one_sentence(caught.value), caught.value
