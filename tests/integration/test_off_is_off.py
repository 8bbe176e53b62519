# SPDX-License-Identifier: Apache-2.0
"""The patched SGLang without the flag gives the same bits as the stock one."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scenario import prompts

from shplb import patching
from shplb.sglang.cpu import cpu_environment

pytestmark = pytest.mark.server

PROBE = Path(__file__).with_name("logprob_probe.py")
LENGTHS = [5, 9, 17, 33, 40, 63, 64, 65, 90, 120, 128, 150, 190, 220, 256, 300, 400, 511, 650, 900]


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def logprobs(model: Path, batch: list[list[int]], package: Path) -> list[object]:
    # The patched side runs as users run it, with our plugin loaded; stock must not load it.
    plugins = {"SGLANG_PLUGINS": "none"} if "stock" in package.parts else {}
    environment = {**os.environ, **cpu_environment(1), **plugins, "PYTHONPATH": str(package.parent)}
    job = json.dumps({"model": str(model), "prompts": batch})
    run = subprocess.run(
        [sys.executable, str(PROBE)], input=job, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert Path(found["file"]).parent == package
    return list(found["logprobs"])


def test_patched_without_the_flag_equals_stock(smollm2_short: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    installed = Path(next(iter(spec.submodule_search_locations)))
    assert patching.check(installed).state is patching.State.APPLIED
    stock = tmp_path / "stock" / "sglang"
    shutil.copytree(installed, stock, symlinks=True, copy_function=link_or_copy)
    patching.revert(stock)
    batch = prompts(smollm2_short, LENGTHS)
    assert logprobs(smollm2_short, batch, installed) == logprobs(smollm2_short, batch, stock)
