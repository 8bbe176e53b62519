# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's sm90 prefill module for one model: in the cache, compiled now, or what keeps it from that."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shplb.diagnosis import devices
from shplb.diagnosis.finding import Finding, problem_of
from shplb.model import ModelShape, UnsupportedModelError, read_config
from shplb.processes import ManagedProcess
from shplb.sglang.active_plan import local_model_dir

_AREA, _CAPABILITY, _ARCHITECTURE = "kernel", "9.0", "9.0a"
_LOOK_S, _BUILD_S = 120, 7200  # a first import of torch from a cold disk; nvcc on few, slow and busy cores
# As SGLang reads a config: what is not here counts as float32.
_DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "half": "float16"}

_ASK = """
import json, sys, torch
from shplb.kernels import flashinfer_sm90 as sm90
dtype, head_dim, build = getattr(torch, sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "build"
try:
    found = build or sm90.is_built(dtype, head_dim)
    report = {"path": str(sm90.build(dtype, head_dim)) if found else None}
except sm90.KernelUnavailableError as error:
    report = {"refused": str(error)}
print("\\n" + json.dumps(report), flush=True)
"""


def check_kernel(model_path: str, *, prebuild: bool = False) -> list[Finding]:
    """One finding about the module that this model needs; nothing where a finding about the model says enough.

    Args:
        prebuild: compile it where it isn't, for compute capability 9.0 whatever GPU is here.
    """
    folder = local_model_dir(model_path)
    if folder is None:
        return []
    try:
        config = read_config(folder)
        head_dim = ModelShape.from_config(config).head_dim
    except UnsupportedModelError:
        return []
    capabilities = gpu_capabilities()
    needed = _CAPABILITY in capabilities
    if not needed and not prebuild:
        return [_not_needed(capabilities)]
    dtype = served_dtype(config)
    if dtype == "float32":
        return [_not_served(prebuild)]
    nvcc = devices.find_nvcc() is not None
    # FlashInfer keeps a folder per set of architectures, by default those of the GPUs it sees.
    target = {} if needed or "FLASHINFER_CUDA_ARCH_LIST" in os.environ else {"FLASHINFER_CUDA_ARCH_LIST": _ARCHITECTURE}
    report = ask(dtype, head_dim, build=prebuild and nvcc, env=target)
    return [_describe(report, f"FlashInfer's sm90 prefill module for {dtype}, head_dim {head_dim}", nvcc)]


def _not_needed(capabilities: set[str]) -> Finding:
    if not capabilities:
        return Finding(_AREA, "note", "FlashInfer's sm90 prefill module is not needed without an NVIDIA GPU")
    found = ", ".join(sorted(capabilities))
    text = f"the sm90 kernel is for compute capability {_CAPABILITY}; on {found}, FlashInfer's public wrapper is used"
    return Finding(_AREA, "note", f"{text}, which pays from longer contexts on")


def _not_served(prebuild: bool) -> Finding:
    text = "a float32 model is not served by the sm90 kernel"
    if prebuild:
        fix = "set the dtype in its config.json to what you serve it in, bfloat16 or float16"
        return Finding(_AREA, "problem", f"{text}, so nothing was compiled", fix)
    # Said, since the module is then compiled at the first start all the same.
    return Finding(_AREA, "note", f"{text}; SGLang's --dtype auto makes it float16, which is")


def _describe(report: Mapping[str, Any], module: str, nvcc: bool) -> Finding:
    if "error" in report:
        fix = "install torch, flashinfer-python and shplb again"
        return Finding(_AREA, "problem", f"{module} could not be checked ({report['error']})", fix)
    if "refused" in report:
        return problem_of(_AREA, report["refused"])
    if report["path"] is not None:
        folder = Path(report["path"]).parents[1]  # its own folder and file have names of 150 letters each
        return Finding(_AREA, "ok", f"{module} is compiled, in {folder}")
    if not nvcc:
        fix = "install the CUDA toolkit and set CUDA_HOME to its folder"
        return Finding(_AREA, "problem", f"{module} is not compiled and can't be, since nvcc is missing", fix)
    text = f"{module} will be compiled at the first start, which takes about 90 s"
    return Finding(_AREA, "note", f"{text}; `shplb doctor --prebuild` does it ahead of time")


def served_dtype(config: Mapping[str, Any]) -> str:
    """What the weights are in by a Hugging Face config: "bfloat16", "float16" or, as for SGLang, else "float32"."""
    name = config.get("dtype") or config.get("torch_dtype")
    return _DTYPES.get(str(name).removeprefix("torch."), "float32")


def gpu_capabilities() -> set[str]:
    """Compute capabilities of the GPUs here, such as {"9.0"}; empty without a GPU or a working nvidia-smi."""
    code, out, _ = devices.run(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
    return set(out.split()) if code == 0 else set()


def ask(dtype: str, head_dim: int, *, build: bool, env: Mapping[str, str]) -> dict[str, Any]:
    """Where the module is, in a process of its own: {"path": None or where}, {"refused": why} or {"error": why}."""
    command = [sys.executable, "-c", _ASK, dtype, str(head_dim), "build" if build else "look"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        # Managed, since a compiler left behind would write into the cache beside the next one.
        with ManagedProcess(command, log=log, env=env) as child:
            try:
                code = child.process.wait(timeout=_BUILD_S if build else _LOOK_S)
            except subprocess.TimeoutExpired as error:
                return {"error": f"no answer within {error.timeout:g} s"}
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code:
        return {"error": lines[-1].strip() if lines else f"exit code {code}"}
    report: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return report
