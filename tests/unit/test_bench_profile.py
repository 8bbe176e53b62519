# SPDX-License-Identifier: Apache-2.0
"""The profile bench without an engine: options, rows, what it refuses, and a whole run over a stand-in."""

import argparse
import json
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import bench_profile
import numpy as np
import pytest
import torch
from synthetic import is_one_sentence

from shplb.profile import DENSITIES
from shplb.recording import ProfileJob, ProfileRequest
from shplb.sglang.profile_worker import engine_options
from shplb.sglang.running_sums import RunningSums

JOB = ProfileJob("model", 1, "cuda", "bfloat16", "", {"a": [1] * 5000, "b": [2] * 700})


def test_engines_differ_in_recording_alone(tmp_path: Path) -> None:
    recording = bench_profile.options_of("recording", JOB, tmp_path)
    assert recording == engine_options(JOB, tmp_path) | {"load_format": "dummy"}
    dense = bench_profile.options_of("dense", JOB, tmp_path)
    # What a server with S-HPLB sets itself, see server_args.resolve_defaults.
    assert dense.pop("page_size") == 64
    assert dense.pop("cuda_graph_backend_prefill") == "disabled"
    assert {name: recording.pop(name) for name in ("enable_shplb", "shplb_profile")} == {
        "enable_shplb": True, "shplb_profile": str(tmp_path),
    }  # fmt: skip
    assert dense == recording


@pytest.mark.parametrize(("device", "blocks"), [("cuda", 7680), ("cpu", 1536)])
def test_chunks_are_whole_query_blocks(tmp_path: Path, device: str, blocks: int) -> None:
    job = ProfileJob("model", 1, device, "bfloat16", "flashinfer", JOB.documents)
    options = engine_options(job, tmp_path)
    assert options["chunked_prefill_size"] == blocks
    assert blocks % 192 == blocks % 128 == blocks % 64 == 0
    assert options["attention_backend"] == "flashinfer"
    assert options["context_length"] > 5000
    assert options["max_total_tokens"] > options["context_length"]


def test_rows_leave_the_warm_up_out() -> None:
    seconds = {"100x0": 9.0, "100x1": 2.0, "100x2": 4.0, "2000x0": 9.0, "2000x1": 5.0}
    used = {"100x0": 99, "100x1": 7, "100x2": 5, "2000x0": 99, "2000x1": 8}
    assert bench_profile.rows_of("dense", 100, seconds, used) == {
        "kind": "dense", "tokens": 100, "seconds": 3.0, "all_seconds": [2.0, 4.0], "gpu_bytes": 7,
    }  # fmt: skip
    rows = [bench_profile.rows_of("dense", length, seconds, used) for length in (100, 2000)]
    slower = {name: 1.25 * value for name, value in seconds.items()}
    rows += [bench_profile.rows_of("recording", length, slower, used) for length in (100, 2000)]
    assert bench_profile.added(rows) == [
        {"tokens": 100, "added_share": 0.25, "added_gpu_bytes": 0},
        {"tokens": 2000, "added_share": 0.25, "added_gpu_bytes": 0},
    ]


class InlinePool:
    """Runs a function at once, in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> Future:
        done: Future = Future()
        done.set_result(function(*arguments))
        return done


def stand_in(record: bool) -> Any:
    """An engine that takes a microsecond per token, half as much again where it records."""

    def run(kind: str, job: ProfileJob, folder: Path) -> tuple[dict[str, float], dict[str, int]]:
        request = ProfileRequest.load(folder)
        for name in job.documents if record and kind == "recording" else ():
            assert request.owns(name)
            sums = RunningSums(2, 4, len(request.lengths), torch.device("cpu")).on_host()
            assert sums.recovery.shape[-1] == len(DENSITIES)
            sums.rows += 1
            sums.save(folder, name, 0)
        scale = 1.5e-6 if kind == "recording" else 1e-6
        seconds = {name: scale * len(tokens) for name, tokens in job.documents.items()}
        return seconds, dict.fromkeys(seconds, 10 if kind == "dense" else 17)

    return run


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path, lengths: str = "512,2048") -> Path:
    out = folder / "profile.json"
    monkeypatch.setattr(bench_profile, "ProcessPoolExecutor", InlinePool)
    options = ["--shape", "tiny", "--lengths", lengths, "--device", "cpu", "--work", str(folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_profile.py", *options])
    bench_profile.main()
    return out


def test_a_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_profile, "run_engine", stand_in(record=True))
    result = json.loads(run_main(monkeypatch, tmp_path).read_text())
    assert result["bench"] == "profile"
    assert [(row["kind"], row["tokens"]) for row in result["rows"]] == [
        ("dense", 512), ("dense", 2048), ("recording", 512), ("recording", 2048),
    ]  # fmt: skip
    assert [row["added_share"] for row in result["added"]] == pytest.approx([0.5, 0.5])
    assert [row["added_gpu_bytes"] for row in result["added"]] == [7, 7]
    assert (result["arguments"]["shape"], result["arguments"]["lengths"]) == ("tiny", [512, 2048])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [row["tokens"] for row in printed] == [512, 2048] * 3
    request = ProfileRequest.load(tmp_path / "request")
    assert request.lengths == (1024, 2048)
    assert (request.rule.query_block, request.exact_document) == (192, "")


def test_an_engine_that_recorded_nothing_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_profile, "run_engine", stand_in(record=False))
    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, tmp_path)
    assert is_one_sentence(str(caught.value).replace("; ", ", "))
    assert "no curves of 2048x0 were recorded" in str(caught.value)
    assert not (tmp_path / "profile.json").exists()


def test_an_engine_that_dies_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def die(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(bench_profile, "run_engine", die)
    with pytest.raises(SystemExit, match="the dense engine ended before its documents did"):
        run_main(monkeypatch, tmp_path)


def test_lengths_must_be_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--lengths is 'all', expected token counts"):
        run_main(monkeypatch, tmp_path, lengths="all")


def test_documents_are_those_of_the_seed() -> None:
    args = argparse.Namespace(shape="tiny", lengths=(64, 128), documents=2, seed=3)
    found = bench_profile.documents_of(args)
    assert list(found) == ["64x0", "64x1", "64x2", "128x0", "128x1", "128x2"]
    assert found == bench_profile.documents_of(args)
    assert found["64x1"] != found["64x2"]
    assert np.max([max(tokens) for tokens in found.values()]) < bench_profile.SHAPES["tiny"]["vocab_size"]
