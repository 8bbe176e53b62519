# SPDX-License-Identifier: Apache-2.0
"""Ranks that read different plans refuse to serve; two real processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, types, torch.distributed as dist
rank, port, plan_hash = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
import sglang.srt.distributed as sgl
sgl.get_tp_group = lambda: types.SimpleNamespace(cpu_group=dist.group.WORLD)
from shplb.sglang.backend import check_same_plan
check_same_plan(plan_hash, types.SimpleNamespace(tp_size=2))
print("agreed")
"""


@pytest.mark.parametrize(("hashes", "agree"), [(("a1", "a1"), True), (("a1", "b2"), False)])
def test_plan_hash_is_compared(hashes: tuple[str, str], agree: bool, tmp_path: Path) -> None:
    from shplb.sglang.cpu import cpu_environment
    from shplb.sglang.launch import free_port

    port = str(free_port())
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(rank), port, plan_hash],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **cpu_environment(2)},
        )
        for rank, plan_hash in enumerate(hashes)
    ]
    for run in runs:
        out, err = run.communicate(timeout=240)
        assert ("agreed" in out) == agree, err[-2000:]
        assert (run.returncode == 0) == agree
        if not agree:
            assert "ranks read different plans" in err
            assert "Traceback" not in err
