# SPDX-License-Identifier: Apache-2.0
"""`shplb doctor`: every probe on machines it does not run on, each fault with its fix and without a traceback."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import typer
from findings import levels
from server_arguments import plan_of, write_model
from typer.testing import CliRunner

from shplb import patching
from shplb.commands.doctor import doctor
from shplb.diagnosis import Finding, cache, devices, installation, served_model, versions
from shplb.diagnosis.finding import problem_of
from shplb.model import fingerprint
from shplb.sglang import plugin
from shplb.sglang.active_plan import cached_plan_path

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(doctor)

PINNED = {
    "shplb": "0.1.0", "numpy": "1.0", "sglang": "0.5.15.post1", "torch": "2.11.0+cu130", "flashinfer-python": "0.6.12",
}  # fmt: skip


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What is installed, to be changed by the test."""
    found = dict(PINNED)

    def version(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(versions, "version", version)
    monkeypatch.setattr(versions, "metadata", lambda name: {"Requires-Python": "==3.12.*"})
    monkeypatch.setattr(versions, "requires", lambda name: ["numpy==1.0", 'sglang==9; extra == "sglang"'])
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.12.9")
    return found


def test_versions_as_pinned(packages: dict[str, str]) -> None:
    assert set(levels(versions.check_versions()).values()) == {"ok"}


@pytest.mark.parametrize(
    ("changes", "area", "text", "fix"),
    [
        ({"sglang": None}, "sglang", "not installed, expected 0.5.15.post1", "pip install sglang==0.5.15.post1"),
        ({"torch": None}, "torch", "not installed", "pip install torch==2.11.0"),
        ({"torch": "2.12.0+cu130"}, "torch", "2.12.0+cu130, expected 2.11.0", "torch==2.11.0"),
        ({"flashinfer-python": "0.7"}, "flashinfer", "0.7, expected 0.6.12", "flashinfer-python==0.6.12"),
        ({"numpy": "2.0"}, "shplb", "0.1.0, but numpy 2.0", "pip install numpy==1.0"),
        ({"numpy": None}, "shplb", "0.1.0, but numpy missing", "pip install numpy==1.0"),
        ({"shplb": None}, "shplb", "is not installed as a package", "pip install ."),
    ],
)
def test_wrong_versions(
    packages: dict[str, str], changes: dict[str, str | None], area: str, text: str, fix: str
) -> None:
    for name, value in changes.items():
        packages.pop(name)
        if value:
            packages[name] = value
    findings = versions.check_versions()
    assert [name for name, level in levels(findings).items() if level == "problem"] == [area]
    (found,) = [finding for finding in findings if finding.level == "problem"]
    assert text in found.text
    assert fix in found.fix


def test_wrong_python(packages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.13.0")
    assert versions.check_versions()[0] == Finding(
        "Python", "problem", "3.13.0, expected 3.12", "make an environment with Python 3.12"
    )


@pytest.mark.parametrize(
    ("state", "fault", "level", "fix"),
    [
        (patching.State.APPLIED, "", "ok", ""),
        (patching.State.NOT_APPLIED, "", "problem", "run `shplb patch apply`"),
        (patching.State.MODIFIED, "x.py was modified; reinstall (a checkout: git)", "problem", "reinstall"),
    ],
)
def test_patch(monkeypatch: pytest.MonkeyPatch, state: Any, fault: str, level: str, fix: str) -> None:
    outcome = patching.Outcome(Path("/sglang"), state, "none", fault)
    monkeypatch.setattr(patching, "check", lambda: outcome)
    (found,) = installation.check_patch()
    assert found.level == level
    assert fix in found.fix
    levels([found])


def test_patch_without_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise patching.PatchRefused("sglang is not installed, expected sglang==1: install it with `pip` (or: don't)")

    monkeypatch.setattr(patching, "check", refuse)
    assert installation.check_patch() == [
        Finding("patch", "problem", "sglang is not installed, expected sglang==1", "install it with `pip` (or: don't)")
    ]


def test_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    assert levels(installation.check_plugin()) == {"plugin": "ok"}
    monkeypatch.setenv("SGLANG_PLUGINS", "other, shplb")
    assert levels(installation.check_plugin()) == {"plugin": "ok"}
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    (found,) = installation.check_plugin()
    assert found.level == "problem"
    assert found.text.startswith("SGLANG_PLUGINS is 'other'")
    assert found.fix == "add 'shplb' to it"
    monkeypatch.delenv("SGLANG_PLUGINS")
    monkeypatch.setattr(plugin, "entry_points", lambda **names: ())
    assert levels(installation.check_plugin()) == {"plugin": "problem"}


def test_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> None:
    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "not" / "yet"))
    (found,) = cache.check_cache()
    assert (found.level, found.text[:7]) == ("ok", "0 plans")
    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path))
    for tp_size in (1, 2, 4):
        plan_of(llama, tp_size=tp_size).save(tmp_path / "plans" / f"{tp_size}.plan.safetensors")
    (tmp_path / "plans" / "bad.plan.safetensors").write_bytes(b"bad")
    findings = cache.check_cache()
    assert levels(findings) == {"cache": "note"}
    assert findings[0].text == f"4 plans in {tmp_path}"
    assert any(
        "--tp 2, density 0.25: LlamaForCausalLM, 2 layers, 8/4 heads, hidden 128" in found.text for found in findings
    )
    monkeypatch.setattr(cache, "_SHOWN", 2)
    assert len(cache.check_cache()) == 3
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "file" / "x"))
    assert levels(cache.check_cache()) == {"cache": "problem"}


def test_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> None:
    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path))
    findings = served_model.check_model(str(llama), 2)
    assert [found.level for found in findings] == ["ok", "note"]
    assert findings[0].text == "LlamaForCausalLM, 2 layers, 8 query / 4 KV heads of size 16"
    for density in (0.45, 0.25):
        plan_of(llama, tp_size=2).save(path := cached_plan_path(fingerprint(llama), 2, density))
    path.with_name(path.name.replace("0.25", "half")).write_text("no plan")
    path.with_name(path.name.replace("0.25", "0.5")).write_text("no plan")
    cached = served_model.check_model(str(llama), 2)
    assert [found.level for found in cached] == ["ok"] * 3
    assert cached[1].text == "plan for --tp 2 cached at --shplb-density 0.25"


@pytest.mark.parametrize(
    ("changes", "tp_size", "text", "fix"),
    [
        ({"architectures": ["Gemma2ForCausalLM"]}, 1, "this model is Gemma2ForCausalLM", "without --enable-shplb"),
        ({"sliding_window": 4096}, 1, "sliding_window=4096", "without --enable-shplb"),
        ({}, 3, "4 KV heads can't be split over --tp 3", "--tp 1 or 2 or 4, or pad the model with `shplb pad`"),
        ({}, 8, "4 KV heads can't be split over --tp 8", "pad the model"),
        ({"quantization_config": {"quant_method": "awq"}}, 1, "quantised by awq", "the unquantised model"),
        ({"num_hidden_layers": "two"}, 1, "expected a positive integer", "config.json"),
    ],
)
def test_models_that_are_refused(tmp_path: Path, changes: dict[str, Any], tp_size: int, text: str, fix: str) -> None:
    findings = served_model.check_model(str(write_model(tmp_path / "model", **changes)), tp_size)
    assert levels(findings) == {"model": "problem"}
    assert text in findings[-1].text
    assert fix in findings[-1].fix


def test_models_that_are_not_here(tmp_path: Path) -> None:
    assert levels(served_model.check_model(str(tmp_path / "missing"), 1)) == {"model": "problem"}
    (tmp_path / "empty").mkdir()
    found = served_model.check_model(str(tmp_path / "empty"), 1)
    assert levels(found) == {"model": "problem"}
    assert found[0].fix == "give a Hugging Face model folder"


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "100"})


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("GPU", "ok", "one [bold]"), Finding("GPU", "note", "two")]
    monkeypatch.setattr("shplb.diagnosis.examine", lambda model_path, tp, prebuild: findings)
    done = run()
    assert done.exit_code == 0
    assert "one [bold]" in done.output
    assert done.output.endswith("all is well\n")
    findings.append(problem_of("patch", "not applied: run it."))
    done = run()
    assert done.exit_code == 1
    assert "to fix: run it\n" in "\n".join(line.rstrip() for line in done.output.splitlines()) + "\n"
    assert done.output.endswith("1 problem to fix\n")
    assert str(run("--tp", "0").exception) == "--tp is 0, expected one rank or more."
    done = run("--json")
    assert done.exit_code == 1
    report = json.loads(done.output)
    assert report["ok"] is False
    assert report["findings"][2] == {"area": "patch", "level": "problem", "text": "not applied", "fix": "run it"}


def test_nothing_heavy_is_imported() -> None:
    """The diagnosis must work where torch or SGLang can't be imported."""
    code = "import sys\nfrom shplb.diagnosis.examination import examine\n" + (
        "for name in ('torch', 'sglang', 'transformers', 'flashinfer', 'triton'): sys.modules[name] = None\n"
        "import shplb.diagnosis.devices as d\nd.check_devices = lambda tp: []\n"
        "bad = [f for f in examine('/nonexistent', 2) if 'could not be checked' in f.text]\nassert not bad, bad"
    )
    code_done = devices.run([sys.executable, "-c", code])
    assert code_done[0] == 0, code_done
