# SPDX-License-Identifier: Apache-2.0
"""Ranks that read different plans refuse to serve; two real processes over gloo."""

import os
import subprocess
import sys

SCRIPT = """
import sys, types, torch.distributed as dist
rank, port, *hashes = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
import sglang.srt.distributed as sgl
sgl.get_tp_group = lambda: types.SimpleNamespace(cpu_group=dist.group.WORLD)
from shplb.sglang.ranks import check_same_plan
for plan_hash in hashes:
    check_same_plan(plan_hash, types.SimpleNamespace(tp_size=2))
    print("agreed on", plan_hash)
"""


def test_plan_hash_is_compared() -> None:
    from shplb.sglang.cpu import cpu_environment
    from shplb.sglang.launch import free_port

    port = str(free_port())
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(rank), port, "a1", other],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **cpu_environment(2)},
        )
        for rank, other in enumerate(("a1", "b2"))
    ]
    for run in runs:
        out, err = run.communicate(timeout=240)
        assert out.splitlines() == ["agreed on a1"], err[-2000:]
        assert run.returncode != 0
        assert "ranks read different plans" in err
        assert "Traceback" not in err
