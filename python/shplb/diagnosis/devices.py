# SPDX-License-Identifier: Apache-2.0
"""GPUs, and whether torch and the CUDA compiler can use them; each asked in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from shplb.diagnosis.finding import Finding
from shplb.diagnosis.versions import installed

_TIMEOUT_S = 120  # a first import of torch from a cold disk takes a while
_QUERY = ("--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader")
_ASK_TORCH = (
    "import json, torch\n"
    "gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0\n"
    "print(json.dumps({'cuda': torch.version.cuda, 'gpus': gpus}))"
)


def check_devices(tp_size: int) -> list[Finding]:
    """GPUs by nvidia-smi, what torch sees of them, and nvcc, which FlashInfer needs to build kernels."""
    findings, gpus = list_gpus()
    if 0 < gpus < tp_size:
        findings.append(Finding("GPU", "problem", f"{gpus} for --tp {tp_size}", f"use --tp {gpus} or less"))
    return [*findings, check_torch(gpus), check_nvcc(needed=gpus > 0)]


def list_gpus() -> tuple[list[Finding], int]:
    """One line per kind of GPU, and their number; 0 stands for the CPU path."""
    if shutil.which("nvidia-smi") is None:
        return [Finding("GPU", "note", "none (no nvidia-smi): SGLang serves with --device cpu")], 0
    code, out, err = run(["nvidia-smi", *_QUERY])
    if code:
        why = (err or out or f"exit code {code}").splitlines()[0]
        return [Finding("GPU", "problem", f"nvidia-smi fails ({why})", "repair or update the NVIDIA driver")], 0
    lines = [line for line in out.splitlines() if line.strip()]
    findings = []
    for line, count in Counter(lines).items():
        name, capability, memory, driver = [field.strip() for field in (line + ",,,").split(",")[:4]]
        text = f"{count} x {name}, compute capability {capability}, {memory}, driver {driver}"
        tuned = capability == "9.0"
        findings.append(Finding("GPU", "ok" if tuned else "note", text + ("" if tuned else "; tuned for 9.0")))
    return findings or [Finding("GPU", "note", "none: SGLang serves with --device cpu")], len(lines)


def check_torch(gpus: int) -> Finding:
    """Whether torch can be imported, its CUDA version, and whether it sees the GPUs."""
    code, out, err = run([sys.executable, "-c", _ASK_TORCH])
    if code:
        why = (err or f"exit code {code}").strip().splitlines()[-1]
        return Finding("CUDA", "problem", f"torch can't be imported ({why})", "install torch again")
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    text = f"torch is built for CUDA {report['cuda']}" if report["cuda"] else "torch is built for CPUs only"
    if gpus and not report["gpus"]:
        fix = "update the NVIDIA driver to one for this CUDA version, and check CUDA_VISIBLE_DEVICES"
        return Finding("CUDA", "problem", f"{text} and sees none of {gpus} GPUs", fix)
    return Finding("CUDA", "ok", text + (f" and sees {report['gpus']} GPUs" if gpus else ""))


def check_nvcc(*, needed: bool) -> Finding:
    """The CUDA compiler where FlashInfer looks for it; it builds kernels at the first start on a GPU."""
    path = find_nvcc()
    if path is None:
        text = "not found in CUDA_HOME, PATH or /usr/local/cuda"
        if not needed:
            return Finding("nvcc", "note", f"{text}; not needed without a GPU")
        if prebuilt := installed("flashinfer-jit-cache"):
            return Finding("nvcc", "note", f"{text}; kernels come from flashinfer-jit-cache {prebuilt}")
        return Finding("nvcc", "problem", text, "install the CUDA toolkit and set CUDA_HOME to its folder")
    _, out, _ = run([path, "--version"])
    release = re.search(r"release ([\d.]+)", out)
    return Finding("nvcc", "ok", f"{release[1] if release else 'unknown version'}, {path}")


def find_nvcc() -> str | None:
    """As FlashInfer: ``$CUDA_HOME`` or ``$CUDA_PATH`` alone if set, else ``PATH``, else /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home is None and (found := shutil.which("nvcc")):
        return found
    path = Path(home or "/usr/local/cuda") / "bin" / "nvcc"
    return str(path) if path.is_file() else None


def run(command: list[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); a command that can't be started or hangs has exit code -1 and says so."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, "", str(error)
    return done.returncode, done.stdout, done.stderr
