# SPDX-License-Identifier: Apache-2.0
"""Every command: help with an example, --json, exit codes, messages on stderr, tables that fit 100 columns."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from server_arguments import write_model
from synthetic import make_profile, make_shape

from shplb import cli
from shplb.exit_codes import EPILOG, EXIT_CODES
from shplb.planning import make_plan
from shplb.rates import GpuRates

ROOT = Path(__file__).parents[2]


def commands_of(group: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands_of(command, (*prefix, name))
        else:
            yield (*prefix, name), command


COMMANDS = dict(commands_of(typer.main.get_command(cli.app)))
_IDS = [" ".join(name) for name in COMMANDS]

# One call of each that needs no server; {} is a folder of inputs. Exit code 1 where not all is well here.
CALLS: dict[tuple[str, ...], list[str]] = {
    ("plan",): ["{}/profile", "--tp", "8", "--density", "0.45", "--out", "{}/out.plan"],
    ("show",): ["{}/plan"],
    ("report",): ["{}/plan", "--out", "{}/out.html"],
    ("simulate",): ["{}/plan", "--tp", "1,2,4,8", "--synthetic", "requests=4,rate=1,input=4096-65536"],
    ("calibrate",): ["--model-path", "{}/llama", "--out", "{}/out.json"],
    ("doctor",): ["--model-path", "{}/llama"],
    ("pad",): ["{}/llama", "{}/padded", "--kv-heads", "8"],
    ("patch", "apply"): [],
    ("patch", "check"): [],
    ("patch", "revert"): ["--target", "{}/llama"],
}
_NEED_A_SERVER = {("profile",), ("compare",), ("quickstart",)}
_TABLES = {("plan",), ("show",), ("simulate",), ("calibrate",), ("doctor",)}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs as wide as they get: 64 query heads on 8 ranks, and the rates that were measured on an H200."""
    shape = make_shape(layers=3, kv_heads=8, group=8, inert=(7,))
    make_profile(shape).save(tmp_path / "profile")
    make_plan(make_profile(shape), tp_size=8, density=0.2).save(tmp_path / "plan")
    write_model(tmp_path / "llama")
    measured = json.loads((ROOT / "bench" / "results" / "rates.json").read_text())
    rates = msgspec.convert({name: measured[name] for name in GpuRates.__struct_fields__ if name in measured}, GpuRates)
    monkeypatch.setattr("shplb.kernels.timing.measure_rates", lambda *_: rates)
    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], columns: int = 100
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["shplb", *arguments])
    monkeypatch.setenv("COLUMNS", str(columns))
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_calls_name_every_command() -> None:
    assert set(CALLS) | _NEED_A_SERVER == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS, ids=_IDS)
def test_help(name: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(monkeypatch, capsys, [*name, "--help"])
    text = " ".join(out.split())
    assert (code, err) == (0, "")
    assert f"Example: shplb {' '.join(name)}" in text
    assert EPILOG in text
    assert "--json" in text
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS, ids=_IDS)
def test_example_is_understood(name: tuple[str, ...]) -> None:
    """Click parses the example of the help without running it."""
    example = re.search(r"Example: shplb (.*)", COMMANDS[name].help)
    assert example
    words = example[1].split()[len(name) :]
    COMMANDS[name].make_context(" ".join(name), words)


@pytest.mark.parametrize("name", CALLS, ids=" ".join)
def test_text(
    name: tuple[str, ...], work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.format(work) for part in CALLS[name]]
    code, out, err = run(monkeypatch, capsys, [*name, *arguments])
    assert code in EXIT_CODES
    assert "Traceback" not in out + err
    if name in _TABLES:
        _, wide, wide_err = run(monkeypatch, capsys, [*name, *arguments], columns=250)
        for text in (out + err, wide + wide_err):
            assert "…" not in text
        # Lines of prose may be longer on a wide terminal; a table has a ruler, or columns of numbers.
        ruled = [line for line in (wide + wide_err).splitlines() if "─" in line or line.count("  ") > 3]
        assert name == ("doctor",) or all(len(line) <= 100 for line in ruled), ruled  # doctor's is prose that folds
        assert max(len(line) for line in out.splitlines() or [""]) <= 100


@pytest.mark.parametrize("name", CALLS, ids=" ".join)
def test_json_is_all_of_stdout(
    name: tuple[str, ...], work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(monkeypatch, capsys, [*name, *(part.format(work) for part in CALLS[name]), "--json"])
    if name == ("patch", "revert"):  # refused: no SGLang there
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        return
    assert code == (1 if name == ("doctor",) and not json.loads(out)["ok"] else 0), err
    assert isinstance(json.loads(out), dict)
    assert "─" not in err


def test_documented_commands_and_exit_codes() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    for name in {first for first, *_ in COMMANDS}:
        assert f"`shplb {name}" in text
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in text


def test_unknown_option_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        code, out, _ = run(monkeypatch, capsys, [*name, "--no-such-option"])
        assert (code, out) == (2, "")
