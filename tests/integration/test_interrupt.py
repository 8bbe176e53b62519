# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the middle of the quickstart leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from scenario import random_plan

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("off")]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes of this run: SGLang's ranks rename themselves, but inherit an environment variable with the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SHPLB_INTERRUPT_TEST") == str(folder)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
    return found


def interrupt(command: list[str], folder: Path, least_processes: int) -> tuple[int, list[psutil.Process]]:
    """Run until ``least_processes`` processes live, send SIGINT, return (exit code, processes still there)."""
    environment = {**os.environ, "SHPLB_INTERRUPT_TEST": str(folder)}
    log = folder / "interrupt.log"
    with log.open("wb") as stream:
        run = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(processes_of(folder)) < least_processes:
        assert run.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)
    time.sleep(3)
    run.send_signal(signal.SIGINT)
    code = run.wait(60)
    end = time.monotonic() + 20
    while (left := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    return code, left


def test_interrupted_profile(smollm2: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shplb", "profile", "--model-path", str(smollm2), "--device", "cpu"]
    command += ["--max-tokens", "1024", "--documents", "2", "--out", str(tmp_path / "p.safetensors")]
    # The command, the worker, and at least one process that SGLang spawned.
    code, left = interrupt(command, tmp_path, 3)
    assert not left, [process.cmdline() for process in left]
    assert code == 130
    assert not (tmp_path / "p.safetensors").exists()


def test_interrupted_server(smollm2: Path, tmp_path: Path) -> None:
    random_plan(smollm2, 1, tmp_path / "tp1.plan.safetensors", dense=True)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from scenario import server\n"
        "flags = ['--enable-shplb', '--shplb-plan', sys.argv[3]]\n"
        "with server(Path(sys.argv[2]), Path(sys.argv[3]).parent / 'server.log', 1, *flags) as running:\n"
        "    running.wait_ready()\n"
    )
    here, plan = str(Path(__file__).parent), str(tmp_path / "tp1.plan.safetensors")
    _, left = interrupt([sys.executable, "-c", script, here, str(smollm2), plan], tmp_path, 4)
    assert not left, [process.cmdline() for process in left]
