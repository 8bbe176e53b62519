# SPDX-License-Identifier: Apache-2.0
"""The command line: bad input is one sentence on stderr and exit code 1, and nothing is written."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from server_arguments import write_model
from synthetic import is_one_sentence, make_profile, make_serving_plan, make_shape

from shplb import cli
from shplb.commands.profile import fewer_documents, parse_lengths
from shplb.plan import ServingPlan

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shplb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """shplb(*arguments) -> (exit code, stdout, stderr) of the console entry point."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shplb", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with inputs, good and bad; ``w`` in it is where commands would write."""
    make_profile().save(tmp_path / "profile")
    make_serving_plan().save(tmp_path / "plan")
    (tmp_path / "damaged").write_bytes((tmp_path / "profile").read_bytes()[:-1])
    write_model(tmp_path / "llama")
    write_model(tmp_path / "gemma", architectures=["Gemma2ForCausalLM"])
    write_model(tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4})
    write_model(tmp_path / "heads", num_key_value_heads=[1])
    write_model(tmp_path / "inert", shplb_inert_kv_heads=5)
    write_model(tmp_path / "many", architectures="LlamaForCausalLM")
    cut = write_model(tmp_path / "cut", model_type="qwen2", architectures=["Qwen2ForCausalLM"]) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (tmp_path / "nothing-in-it").mkdir()
    (tmp_path / "w").mkdir()
    return tmp_path


_TARGET = ["plan", "{}/profile", "--out", "{}/w/o"]
_PLAN = [*_TARGET, "--density", "0.45"]
_PROFILE = ["profile", "--model-path", "{}/llama", "--out", "{}/w/o", "--device", "cpu"]
_COMPARE = ["compare", "{}/profile", "--model-path", "{}/llama", "--out", "{}/w/o"]
_BAD: list[tuple[list[str], str]] = [
    (_TARGET, "give --density or --recovery or --latency-budget"),
    (["plan", "{}/missing", "--out", "{}/w/o", "--density", "0.45"], "not a file"),
    (["plan", "{}/damaged", "--out", "{}/w/o", "--density", "0.45"], "damaged"),
    (["plan", "{}/plan", "--out", "{}/w/o", "--density", "0.45"], "is a ServingPlan, but a HeadProfile"),
    (["plan", "{}/llama/model.safetensors", "--out", "{}/w/o", "--density", "0.45"], "not a HeadProfile"),
    ([*_PLAN, "--tp", "3"], "4 KV heads can't be placed on 3"),
    ([*_TARGET, "--density", "0"], "density is 0.0"),
    ([*_TARGET, "--density", "nan"], "density is nan"),
    ([*_PLAN, "--objective", "best"], "objective"),
    ([*_TARGET, "--density", "0.2", "--recovery", "0.9"], "--density and --recovery were given, expected one"),
    ([*_TARGET, "--recovery", "0.9", "--latency-budget", "5"], "--recovery and --latency-budget were given"),
    ([*_TARGET, "--recovery", "1.01"], "--recovery is 1.01, expected a share"),
    ([*_TARGET, "--recovery", "0"], "--recovery is 0.0"),
    ([*_TARGET, "--recovery", "nan"], "--recovery is nan"),
    ([*_TARGET, "--latency-budget", "0"], "--latency-budget is 0.0, expected milliseconds"),
    ([*_TARGET, "--latency-budget", "inf"], "--latency-budget is inf"),
    ([*_TARGET, "--latency-budget", "0.001"], "is predicted to take at least"),
    ([*_PLAN, "--balance-aware", "--objective", "uniform"], "--objective is uniform"),
    ([*_PLAN, "--at-tokens", "0"], "--at-tokens is 0"),
    ([*_PLAN, "--at-tokens", "1048577"], "expected a prompt of 1 to 1048576 tokens"),
    ([*_PLAN, "--scope", "head"], "scope"),
    ([*_PLAN, "--dense-below", "-1"], "dense_below_tokens"),
    (["plan", "{}/profile", "--out", "{}/profile/o", "--density", "0.45"], "profile"),
    (["show", "{}/missing"], "not a file"),
    (["show", "{}/profile"], "is a HeadProfile, but a ServingPlan"),
    (["pad", "{}/missing", "{}/w/o", "--kv-heads", "8"], "config.json"),
    (["pad", "{}/llama", "{}/w/o", "--kv-heads", "4"], "expected more than"),
    (["pad", "{}/gemma", "{}/w/o", "--kv-heads", "8"], "Gemma2ForCausalLM"),
    (["profile", "--model-path", "{}/missing", "--out", "{}/w/o"], "config.json can't be read"),
    (["profile", "--model-path", "{}/nothing-in-it", "--out", "{}/w/o"], "config.json can't be read"),
    (["profile", "--model-path", "{}/gemma", "--out", "{}/w/o"], "Gemma2ForCausalLM"),
    (["pad", "{}/cut", "{}/w/o", "--kv-heads", "8"], "is not a whole safetensors file"),
    (["pad", "{}/cut", "{}/w/o", "--kv-heads", "1000000000000"], "at most 4096"),
    (["pad", "{}/heads", "{}/w/o", "--kv-heads", "8"], "num_key_value_heads is [1], expected a positive integer"),
    (["pad", "{}/inert", "{}/w/o", "--kv-heads", "8"], "shplb_inert_kv_heads is 5, expected a list"),
    (["pad", "{}/many", "{}/w/o", "--kv-heads", "8"], "has architecture unknown"),
    (["plan", "{}/profile", "--out", "{}/w", "--density", "0.45"], "is a folder, expected the name of a file"),
    ([*_PROFILE], "tokenizer"),
    (["profile", "--model-path", "{}/awq", "--out", "{}/w/o"], "quantised weights"),
    (["profile", "--model-path", "{}/heads", "--out", "{}/w/o"], "num_key_value_heads is [1]"),
    (["profile", "--model-path", "{}/inert", "--out", "{}/w/o"], "shplb_inert_kv_heads is 5"),
    (["profile", "--model-path", "{}/llama", "--out", "{}/w"], "is a folder, expected the name of a file"),
    ([*_PROFILE, "--max-tokens", "100000000000"], "beyond the model's context"),
    ([*_PROFILE, "--lengths", "1024,x"], "--lengths is '1024,x'"),
    ([*_PROFILE, "--lengths", "0,5"], "--lengths is '0,5'"),
    ([*_PROFILE, "--lengths", "64,1024"], "too short"),
    ([*_PROFILE, "--max-tokens", "0"], "too short"),
    ([*_PROFILE, "--documents", "0"], "--documents is 0"),
    ([*_PROFILE, "--tp", "3"], "divisor of the model's 4 KV heads"),
    ([*_PROFILE, "--tp", "0"], "divisor of the model's 4 KV heads"),
    ([*_PROFILE[:-1], "tpu"], "--device is tpu"),
    ([*_PROFILE, "--row-sampling", "0"], "--row-sampling is 0, expected 1"),
    ([*_PROFILE, "--row-sampling", "9"], "--row-sampling is 9, expected 1"),
    ([*_PROFILE, "--importance", "hessian"], "--importance is hessian, expected none or fisher"),
    (["simulate", "{}/plan"], "neither TRACE nor --synthetic"),
    (["simulate", "{}/plan", "{}/missing"], "can't be read"),
    (["simulate", "{}/plan", "--tp", "3", "--synthetic", "requests=1,rate=1,input=4096"], "can't be placed on 3"),
    ([*_COMPARE, "--densities", "0.1,x"], "--densities is '0.1,x'"),
    ([*_COMPARE, "--densities", "0"], "--densities is '0'"),
    ([*_COMPARE, "--ways", "best:model"], "--ways has 'best:model'"),
    (_COMPARE, "was made of another model"),
    (["compare", "{}/plan", "--model-path", "{}/llama"], "is a ServingPlan, but a HeadProfile"),
    (["doctor", "--tp", "0"], "--tp is 0"),
    (["calibrate", "--model-path", "{}/missing"], "config.json can't be read"),
    (["calibrate", "--model-path", "{}/llama", "--tp", "3"], "can't be placed on 3"),
    (["calibrate", "--model-path", "{}/llama", "--dtype", "float8"], "--dtype is float8"),
    (["calibrate", "--model-path", "{}/llama", "--base", "triton"], "--base is triton"),
    (["report", "{}/missing", "--out", "{}/w/o"], "not a file"),
    (["report", "{}/profile", "--out", "{}/w/o"], "is a HeadProfile, but a ServingPlan"),
    (["report", "{}/plan", "--profile", "{}/plan", "--out", "{}/w/o"], "is a ServingPlan, but a HeadProfile"),
    (["report", "{}/plan", "--out", "{}/nowhere/o"], "there is no folder"),
    (["report", "{}/plan", "--out", "{}/w/o", "--bench", "{}/damaged"], "is not a JSON file"),
    (["patch", "check", "--target", "{}/nothing-in-it"], ""),
    (["patch", "apply", "--target", "{}/nothing-in-it"], ""),
    (["patch", "revert", "--target", "{}/nothing-in-it"], ""),
    (["quickstart", "--folder", "{}/profile/x"], "profile"),
]


@pytest.mark.parametrize(("arguments", "expected"), _BAD, ids=lambda value: " ".join(value) if value[:1] else "-")
def test_bad_input(shplb: Run, work: Path, arguments: list[str], expected: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    code, out, err = shplb(*(argument.format(work) for argument in arguments))
    lines = [line for line in err.splitlines() if not re.match(r"^(\[\d/\d\]|\d+ s\))", line)]
    assert code == 1
    assert len(lines) == 1, err
    assert expected in lines[0]
    assert "Traceback" not in out + err
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_every_command_has_bad_inputs_above() -> None:
    names = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    groups = {group.name for group in cli.app.registered_groups}
    assert names | groups == {arguments[0] for arguments, _ in _BAD}


@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_plan_and_show(shplb: Run, work: Path, tp_size: int) -> None:
    code, _, err = shplb("plan", work / "profile", "--tp", tp_size, "--density", "0.3", "--out", work / "w/o")
    assert code == 0
    assert f"wrote {work}/w/o" in err
    plan = ServingPlan.load(work / "w" / "o")
    assert (plan.tp_size, plan.density, plan.objective) == (tp_size, 0.3, "min_error")
    code, out, err = shplb("show", work / "w" / "o")
    assert (code, err) == (0, "")
    assert "LlamaForCausalLM: 3 layers, 8 query / 4 KV heads" in out
    assert len([line for line in out.splitlines() if line.startswith("layer ")]) == 3
    assert all(line.count("|") == tp_size - 1 for line in out.splitlines() if line.startswith("layer "))
    assert ("max/mean" in out) == (tp_size > 1)
    assert "mean 0.300" in out


def test_show_of_a_padded_model(shplb: Run, tmp_path: Path) -> None:
    make_profile(make_shape(inert=(3,))).save(tmp_path / "profile")
    assert shplb("plan", tmp_path / "profile", "--tp", 2, "--density", 0.45, "--out", tmp_path / "plan")[0] == 0
    _, out, _ = shplb("show", tmp_path / "plan")
    assert "(1 of them padding)" in out
    assert "3 groups on 2 ranks could not be better than 1.33" in out.replace("\n", " ")
    assert sum(line.count("--") for line in out.splitlines() if line.startswith("layer ")) == 3 * 2


def test_plan_can_be_made_again_in_place(shplb: Run, work: Path) -> None:
    for density in (0.2, 0.4):
        assert shplb("plan", work / "profile", "--density", density, "--out", work / "w/o")[0] == 0
        assert ServingPlan.load(work / "w" / "o").density == density
    assert [path.name for path in (work / "w").iterdir()] == ["o"]


def test_brackets_in_names_are_no_markup(shplb: Run, work: Path) -> None:
    code, _, err = shplb("plan", work / "profile", "--density", 0.45, "--out", work / "w" / "a[/b]c[red]")
    assert code == 0
    assert f"wrote {work}/w/a[/b]c[red]" in err


def test_usage_errors(shplb: Run) -> None:
    for arguments in ([], ["--help"], ["no-such-command"], ["plan"], ["plan", "x", "--out", "y", "--tp", "two"]):
        code, out, err = shplb(*arguments)
        assert code == (0 if arguments == ["--help"] else 2)
        assert "Traceback" not in out + err


def test_interrupt_is_quiet(shplb: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    assert shplb() == (130, "", "")


@pytest.mark.parametrize("texts", [None, Path("mine")])
def test_fewer_documents_than_asked_for(texts: Path | None) -> None:
    message = fewer_documents(10, 12, 65536, texts)
    assert is_one_sentence(message.replace(": ", "; "))
    assert "10 documents of 65536 tokens, not 12" in message


def test_lengths() -> None:
    assert parse_lengths("4096,1024,1024") == (1024, 4096)
    assert parse_lengths("7") == (7,)
