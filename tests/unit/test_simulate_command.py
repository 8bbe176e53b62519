# SPDX-License-Identifier: Apache-2.0
"""`shplb simulate`: table, JSON, and one sentence for what can't be done."""

import json
from pathlib import Path

import pytest
import typer
from synthetic import is_one_sentence, make_profile, make_shape
from typer.testing import CliRunner, Result

from shplb.commands.simulate import parse_sizes, simulate
from shplb.planning import make_plan

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(simulate)

SYNTHETIC = ["--synthetic", "requests=8,rate=1,input=4096-16384,output=3"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plans") / "plan"
    make_plan(make_profile(make_shape(4, 8, 4)), tp_size=2, density=0.2).save(path)
    return str(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def test_table(plan: str) -> None:
    done = run(plan, *SYNTHETIC, "--tp", "4,2")
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    assert "…" not in done.output
    rows = [line.split() for line in done.output.splitlines() if line.strip()[:1] in ("2", "4")]
    assert [row[:2] for row in rows] == [[tp, name] for tp in "24" for name in ("dense", "contiguous", "placed")]
    assert [len(row) for row in rows] == [6, 9, 9] * 2


def test_json_says_the_same(plan: str) -> None:
    done = run(plan, *SYNTHETIC, "--json")
    report = json.loads(done.output)
    expected = {"step_ms": 14.5, "token_us": 10.9, "prompt_us": 0.15, "decode_ms": 5.0, "chunk_tokens": 8192}
    assert report["cost"] == expected
    assert report["trace"]["requests"] == 8
    assert report["trace"]["measured"] is None
    assert [(row["tp_size"], row["placement"]) for row in report["results"]] == [
        (2, "dense"), (2, "contiguous"), (2, "placed"),
    ]  # fmt: skip
    table = run(plan, *SYNTHETIC).output
    for row in report["results"]:
        for name in ("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "attention_s"):
            assert f"{row[name]:.3f}" in table
    assert run(plan, *SYNTHETIC, "--json").output == done.output


def test_options_reach_the_simulation(plan: str) -> None:
    options = ["--step-ms", "0", "--token-us", "1000", "--prompt-us", "0", "--decode-ms", "0"]
    options += ["--chunked-prefill-size", "-1"]
    done = run(plan, "--synthetic", "requests=1,rate=1,input=5000,output=9", *options, "--json")
    for row in json.loads(done.output)["results"]:
        assert row["prefill_steps"] == 1
        assert row["ttft_mean_s"] == pytest.approx(5.0 + row["attention_s"])
        assert row["duration_s"] == pytest.approx(row["ttft_mean_s"])


def test_measured_times_stand_beside(plan: str, tmp_path: Path) -> None:
    bench = {"request_rate": 1.0, "input_lens": [4096, 4096], "output_lens": [2, 2], "ttfts": [0.25, 0.75]}
    (tmp_path / "bench.jsonl").write_text(json.dumps(bench) + "\n")
    assert "measured" in (output := run(plan, str(tmp_path / "bench.jsonl")).output)
    assert "0.500" in output
    report = json.loads(run(plan, str(tmp_path / "bench.jsonl"), "--json").output)
    assert report["trace"]["measured"]["ttft_mean_s"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{plan}"], "neither TRACE nor --synthetic were given"),
        (["{plan}", "{plan}", *SYNTHETIC], "both TRACE and --synthetic were given"),
        (["{plan}", "/nonexistent"], "can't be read"),
        (["/nonexistent", *SYNTHETIC], "is not a file"),
        (["{plan}", *SYNTHETIC, "--tp", "3"], "8 KV heads can't be placed on 3 ranks"),
        (["{plan}", *SYNTHETIC, "--tp", "2,x"], "--tp is '2,x'"),
        (["{plan}", *SYNTHETIC, "--chunked-prefill-size", "100"], "--chunked-prefill-size is 100"),
        (["{plan}", *SYNTHETIC, "--token-us", "-1"], "--token-us is -1.0"),
        (["{plan}", "--synthetic", "much"], "--synthetic is 'much'"),
    ],
)
def test_mistakes_are_one_sentence(plan: str, arguments: list[str], message: str) -> None:
    done = run(*(argument.format(plan=plan) for argument in arguments))
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert is_one_sentence(done.exception)
    assert done.stdout == ""


def test_sizes() -> None:
    assert parse_sizes("8,2,2") == (2, 8)
    for text in ("", "0", "-1", "2;4"):
        with pytest.raises(ValueError, match="expected numbers of ranks"):
            parse_sizes(text)
