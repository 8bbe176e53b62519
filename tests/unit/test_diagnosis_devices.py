# SPDX-License-Identifier: Apache-2.0
"""`shplb doctor` on machines with other GPUs, drivers and compilers than this one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from findings import levels

from shplb.diagnosis import devices, examination, versions

H200 = "NVIDIA H200, 9.0, 143771 MiB, 580.95"


Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """machine(program=(exit code, stdout, stderr), ...): what is on PATH and what it says; "torch" is the import."""

    def install(**programs: tuple[int, str, str]) -> None:
        names = {"nvidia_smi": "nvidia-smi", "nvcc": "nvcc"}
        paths = {names[key]: f"/bin/{names[key]}" for key in programs if key in names}
        monkeypatch.setattr(devices.shutil, "which", paths.get)

        def run(command: list[str]) -> tuple[int, str, str]:
            key = "torch" if command[0] == sys.executable else Path(command[0]).name.replace("-", "_")
            return programs[key]

        monkeypatch.setattr(devices, "run", run)
        for name in ("CUDA_HOME", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        is_file = Path.is_file
        monkeypatch.setattr(Path, "is_file", lambda path: path.name != "nvcc" and is_file(path))

    return install


def torch_says(gpus: int, cuda: str | None = "13.0") -> tuple[int, str, str]:
    return 0, f"some warning\n{json.dumps({'cuda': cuda, 'gpus': gpus})}\n", ""


def test_gpus(machine: Machine) -> None:
    machine(nvidia_smi=(0, f"{H200}\n{H200}\n", ""), torch=torch_says(2), nvcc=(0, "Cuda, release 13.0, V13", ""))
    findings = devices.check_devices(2)
    assert set(levels(findings).values()) == {"ok"}
    text = " ".join(finding.text for finding in findings)
    assert "2 x NVIDIA H200, compute capability 9.0, 143771 MiB, driver 580.95" in text
    assert "built for CUDA 13.0 and sees 2 GPUs" in text
    assert "13.0, /bin/nvcc" in text
    assert levels(devices.check_devices(4))["GPU"] == "problem"


def test_no_gpu_is_the_cpu_path(machine: Machine) -> None:
    machine(torch=torch_says(0))
    findings = devices.check_devices(2)
    assert levels(findings) == {"GPU": "note", "CUDA": "ok", "nvcc": "note"}
    assert "--device cpu" in findings[0].text


def test_faults_of_devices(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "installed", {}.get)
    machine(nvidia_smi=(0, H200.replace("9.0", "8.0"), ""), torch=torch_says(0))
    assert levels(devices.check_devices(1)) == {"GPU": "note", "CUDA": "problem", "nvcc": "problem"}
    machine(nvidia_smi=(9, "", "NVML: driver/library version mismatch\n"), torch=(1, "", "Traceback\nOSError: libc\n"))
    findings = devices.check_devices(1)
    assert levels(findings) == {"GPU": "problem", "CUDA": "problem", "nvcc": "note"}
    assert "driver/library version mismatch" in findings[0].text
    assert findings[1].text == "torch can't be imported (OSError: libc)"
    monkeypatch.setattr(devices, "installed", {"flashinfer-jit-cache": "0.6.12"}.get)
    assert devices.check_nvcc(needed=True).level == "note"


def test_commands_that_cannot_run() -> None:
    assert devices.run(["/nonexistent/program"])[0] == -1
    assert devices.run([sys.executable, "-c", "print('x')"]) == (0, "x\n", "")


def test_nvcc_is_found_as_flashinfer_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/elsewhere/nvcc")
    assert devices.find_nvcc() is None
    nvcc.parent.mkdir()
    nvcc.touch()
    assert devices.find_nvcc() == str(nvcc)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert devices.find_nvcc() == "/elsewhere/nvcc"


def test_a_broken_probe_costs_its_own_line(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    def broken() -> None:
        raise OSError("no such thing\nand more")

    machine(torch=torch_says(0))
    monkeypatch.setattr(versions, "check_versions", broken)
    monkeypatch.setitem(sys.modules, "shplb.diagnosis.cache", None)
    findings = examination.examine()
    assert levels(findings)["versions"] == levels(findings)["cache"] == "problem"
    assert "OSError: no such thing)" in findings[0].text
    assert {"patch", "plugin", "GPU", "CUDA", "nvcc"} <= set(levels(findings))
