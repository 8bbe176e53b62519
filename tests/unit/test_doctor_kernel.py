# SPDX-License-Identifier: Apache-2.0
"""`shplb doctor` and the sm90 module: in the cache, compiled ahead of time, or what is in the way; without a GPU."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from findings import levels
from server_arguments import write_model
from typer.testing import CliRunner

from shplb.commands.doctor import doctor
from shplb.diagnosis import Finding, devices, examination, kernel

HALF = {"torch_dtype": "bfloat16", "head_dim": 64}

# Stands in for torch and FlashInfer in the child process; the module between them is the real one.
FAKES = {
    "torch.py": """
bfloat16, float16, int32, int64, uint8, float32 = "bfloat16", "float16", "int32", "int64", "uint8", "float32"
class Tensor: pass
class device: pass
class dtype: pass
""",
    "flashinfer/__init__.py": "",
    "flashinfer/jit/__init__.py": "",
    "flashinfer/jit/attention/__init__.py": "",
    "flashinfer/jit/attention/modules.py": """
import os, pathlib, sys

class Spec:
    def __init__(self, *recipe):
        arch = os.environ.get("FLASHINFER_CUDA_ARCH_LIST", "seen")
        self.path = pathlib.Path(os.environ["FAKE_CACHE"]) / arch / f"{recipe[0]}-{recipe[1]}-{recipe[5]}" / "a.so"
        self.is_compiled = self.path.exists()
        self.lock_path = pathlib.Path(os.environ["FAKE_CACHE"] + ".lock")

    def get_library_path(self):
        return self.path

    def build(self, verbose, need_lock):
        print("noise", file=sys.stderr)
        if os.environ.get("FAKE_BUILD"):
            raise RuntimeError("Ninja build failed.\\n" + os.environ["FAKE_BUILD"])
        self.path.parent.mkdir(parents=True)
        self.path.touch()

gen_batch_prefill_module = Spec
""",
    "flashinfer_python-0.6.12.dist-info/METADATA": "Metadata-Version: 2.1\nName: flashinfer-python\nVersion: 0.6.12\n",
}

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """machine(*capabilities, nvcc=...): which GPUs and whether a compiler are here; the child gets the fakes above."""
    for name, text in FAKES.items():
        path = tmp_path / "fakes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    monkeypatch.setenv("FAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FLASHINFER_CUDA_ARCH_LIST", raising=False)

    def install(*capabilities: str, nvcc: bool) -> None:
        said = (0, "".join(f"{one}\n" for one in capabilities), "") if capabilities else (-1, "", "no such file")
        monkeypatch.setattr(devices, "run", lambda command: said)
        monkeypatch.setattr(devices, "find_nvcc", lambda: "/bin/nvcc" if nvcc else None)

    return install


def check(folder: Path, *, prebuild: bool = False, **config: object) -> Finding:
    """The one finding, which must be in one sentence, with a fix if it is a problem."""
    model = write_model(folder / f"model{len(os.listdir(folder))}", **(HALF | config))
    findings = kernel.check_kernel(str(model), prebuild=prebuild)
    assert list(levels(findings)) == ["kernel"]
    (finding,) = findings
    return finding


def test_not_needed(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ask", lambda *names, **rest: pytest.fail("torch is not needed to say so"))
    machine(nvcc=True)
    found = check(tmp_path)
    assert (found.level, "not needed without an NVIDIA GPU" in found.text) == ("note", True)
    machine("8.0", "8.0", nvcc=False)
    found = check(tmp_path)
    assert (found.level, "on 8.0, FlashInfer's public wrapper is used" in found.text) == ("note", True)


def test_first_start_and_ahead_of_time(machine: Machine, tmp_path: Path) -> None:
    machine("9.0", "9.0", nvcc=True)
    found = check(tmp_path)
    assert found.level == "note"
    assert "for bfloat16, head_dim 64 will be compiled at the first start, which takes about 90 s" in found.text
    assert "`shplb doctor --prebuild`" in found.text
    assert not list((tmp_path / "cache").iterdir())
    assert check(tmp_path, prebuild=True).level == "ok"
    # In the folder that FlashInfer itself takes for the GPUs of this machine.
    assert (tmp_path / "cache" / "seen" / "fa3-bfloat16-64" / "a.so").exists()
    found = check(tmp_path)
    assert (found.level, found.text.endswith(f"is compiled, in {tmp_path / 'cache' / 'seen'}")) == ("ok", True)
    assert check(tmp_path, torch_dtype="float16").level == "note"  # another module


@pytest.mark.parametrize("capabilities", [(), ("8.0",)])
def test_ahead_of_time_on_another_machine(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...]
) -> None:
    machine(*capabilities, nvcc=True)
    assert check(tmp_path, prebuild=True, head_dim=128).level == "ok"
    assert (tmp_path / "cache" / "9.0a" / "fa3-bfloat16-128" / "a.so").exists()
    monkeypatch.setenv("FLASHINFER_CUDA_ARCH_LIST", "8.0 9.0a")
    assert check(tmp_path, prebuild=True).text.endswith("8.0 9.0a")


def test_without_a_compiler(machine: Machine, tmp_path: Path) -> None:
    for found in (
        (machine("9.0", nvcc=False), check(tmp_path))[1],
        check(tmp_path, prebuild=True),
        (machine(nvcc=False), check(tmp_path, prebuild=True))[1],
    ):
        assert found.level == "problem"
        assert found.text.endswith("is not compiled and can't be, since nvcc is missing")
        assert found.fix == "install the CUDA toolkit and set CUDA_HOME to its folder"
    library = tmp_path / "cache" / "seen" / "fa3-bfloat16-64" / "a.so"
    library.parent.mkdir(parents=True)
    library.touch()
    machine("9.0", nvcc=False)
    assert check(tmp_path).level == "ok"


def test_what_the_kernel_refuses(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("9.0", nvcc=True)
    found = check(tmp_path, head_dim=96)
    assert found.text == "the sm90 kernel has no variant for bfloat16 and head_dim 96"
    assert found.fix == "serve in bfloat16 or float16, with head_dim 64, 128, 256"
    monkeypatch.setenv("FAKE_BUILD", "nvcc fatal : x; y")
    found = check(tmp_path, prebuild=True)
    assert found.text == "FlashInfer's sm90 kernel can't be compiled (nvcc fatal : x; y)"
    assert found.fix.startswith("install the CUDA toolkit")


@pytest.mark.parametrize("config", [{"torch_dtype": "float32"}, {"torch_dtype": None}, {"dtype": "float32"}])
def test_float32(machine: Machine, tmp_path: Path, config: dict[str, Any]) -> None:
    machine("9.0", nvcc=True)
    found = check(tmp_path, **config)
    assert (found.level, "float32 model is not served by the sm90 kernel" in found.text) == ("note", True)
    found = check(tmp_path, prebuild=True, **config)
    assert (found.level, "set the dtype" in found.fix) == ("problem", True)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "float16"),
        ({"dtype": None, "torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"torch_dtype": "half"}, "float16"),
        ({"torch_dtype": 3}, "float32"),
        ({}, "float32"),
    ],
)
def test_dtype_of_a_config(config: dict[str, Any], dtype: str) -> None:
    assert kernel.served_dtype(config) == dtype


def test_a_broken_torch_costs_this_line_only(machine: Machine, tmp_path: Path) -> None:
    machine("9.0", nvcc=True)
    (tmp_path / "fakes" / "torch.py").write_text("raise ImportError('libcudart.so: cannot open')")
    found = check(tmp_path)
    assert "could not be checked (ImportError: libcudart.so: cannot open)" in found.text
    assert found.level == "problem"


def test_a_child_that_hangs(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine("9.0", nvcc=True)
    (tmp_path / "fakes" / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(kernel, "_LOOK_S", 0.2)
    assert "(no answer within 0.2 s)" in check(tmp_path).text


def test_models_that_another_finding_is_about(machine: Machine, tmp_path: Path) -> None:
    machine("9.0", nvcc=True)
    refused = write_model(tmp_path / "gemma", architectures=["Gemma2ForCausalLM"])
    for path in (tmp_path / "missing", refused):
        assert kernel.check_kernel(str(path), prebuild=True) == []


def test_it_is_one_of_the_probes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> None:
    calls: list[tuple[str, bool]] = []

    def probe(model_path: str, *, prebuild: bool) -> list[Finding]:
        calls.append((model_path, prebuild))
        return [Finding("kernel", "ok", "there")]

    monkeypatch.setattr(kernel, "check_kernel", probe)
    monkeypatch.setattr(devices, "check_devices", lambda tp_size: [])
    assert examination.examine(str(llama), prebuild=True)[-1].text == "there"
    examination.examine(str(llama))
    assert "kernel" not in levels(examination.examine())
    assert calls == [(str(llama), True), (str(llama), False)]


def test_command(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(doctor)
    seen: list[bool] = []

    def examine(model_path: str, tp: int, *, prebuild: bool) -> list[Finding]:
        seen.append(prebuild)
        return [Finding("kernel", "ok", "there")]

    monkeypatch.setattr("shplb.diagnosis.examine", examine)
    done = CliRunner().invoke(app, ["--prebuild"])
    assert str(done.exception) == "--prebuild compiles the kernel of one model; give it with --model-path."
    done = CliRunner().invoke(app, ["--prebuild", "--model-path", "x", "--json"])
    assert json.loads(done.stdout)["ok"] is True
    assert seen == [True]


def test_the_real_module_in_a_real_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against the real torch and FlashInfer, into a cache that is empty."""
    if importlib.util.find_spec("flashinfer") is None:
        pytest.skip("FlashInfer is not installed")
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    target = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a"}
    assert kernel.ask("bfloat16", 128, build=False, env=target) == {"path": None}
    assert "head_dim 96" in kernel.ask("float16", 96, build=False, env=target)["refused"]
    assert (tmp_path / ".cache" / "flashinfer" / "0.6.12" / "90a").is_dir()
