# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the quickstart or while a server starts leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from scenario import random_plan

from shplb.profile import HeadProfile
from shplb.recording import CurveSums

pytestmark = pytest.mark.server


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


def interrupt(
    command: list[str], folder: Path, number: signal.Signals, reached: Callable[[], bool]
) -> tuple[int, list[psutil.Process]]:
    """Run until ``reached``, send the signal, return (exit code, processes still there a while later)."""
    environment = {**os.environ, "SHPLB_INTERRUPT_TEST": str(folder)}
    log = folder / "interrupt.log"
    with log.open("wb") as stream:
        run = subprocess.Popen(
            command,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            # A test run in the background of a shell ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        deadline = time.monotonic() + 600
        while not reached():
            assert run.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        run.send_signal(number)
        code = run.wait(120)
        end = time.monotonic() + 30
        while processes_of(folder) and time.monotonic() < end:
            time.sleep(0.5)
        return code, processes_of(folder)
    finally:
        for process in processes_of(folder):
            process.kill()


def test_interrupted_quickstart(smollm2: Path, smollm2_padded: Path, tmp_path: Path) -> None:
    # In its longest phase, nested deepest: quickstart, profile, worker, ranks; after the first document, from when on
    # SGLang answers SIGTERM by finishing what is queued.
    folder = tmp_path / "quickstart"
    folder.mkdir()
    (folder / "smollm2-float32").symlink_to(smollm2)
    (folder / "smollm2-float32-padded").symlink_to(smollm2_padded)
    # Shorter documents than the quickstart's own, which only take longer.
    script = (
        "import sys; from shplb import cli; from shplb.quickstart import run\n"
        "run.PROFILE_TOKENS = 1024; sys.argv[0] = 'shplb'; cli.main()\n"
    )
    command = [sys.executable, "-c", script, "quickstart", "--folder", str(folder)]
    code, left = interrupt(command, tmp_path, signal.SIGINT, lambda: any(folder.rglob("*.done")))
    assert not left, [process.cmdline() for process in left]
    assert code == 130
    assert not list(folder.glob("*.profile.safetensors"))


def test_profile_goes_on_where_it_was_stopped(smollm2_short: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "p.safetensors", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps(json.loads((smollm2_short / "config.json").read_text()) | {"max_position_embeddings": 1024})
    )
    for path in smollm2_short.iterdir():
        if path.name != "config.json":
            (model / path.name).symlink_to(path)
    # Documents that fill the model's context.
    command = [sys.executable, "-W", "ignore", "-m", "shplb", "profile", "--model-path", str(model)]
    command += ["--out", str(out), "--max-tokens", "1024", "--documents", "2", "--device", "cpu"]
    command += ["--importance", "fisher", "--json"]

    code, left = interrupt(command, tmp_path, signal.SIGINT, lambda: any(tmp_path.rglob("*.done")))
    assert (code, left) == (130, [])
    sampled, exact = sorted(tmp_path.rglob("document000.*sums*"), key=lambda path: "exact" in path.name)
    assert "exact" in exact.name
    said = (tmp_path / "interrupt.log").read_text()
    assert "shplb: interrupted; the same command goes on after the last document that was done." in said
    assert "Traceback" not in said
    assert not out.exists()
    # A mark that only a document which is not measured again keeps.
    finished = CurveSums.load(sampled.parent, "document000", 0)
    finished.error[3] *= 2.0
    finished.save(sampled.parent, "document000", 0)
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    report, profile = json.loads(last.stdout), HeadProfile.load(out)
    assert report["documents"] == list(profile.documents)
    assert len(profile.documents) == 2
    np.testing.assert_allclose(profile.error[0], finished.means()[1], rtol=1e-6)
    assert profile.row_sampling is not None
    assert profile.row_sampling.difference is not None
    assert profile.row_sampling.difference.document == profile.documents[0]
    assert 0 < profile.row_sampling.difference.recovery_mean < 0.05
    assert profile.importance_method == "fisher, 2 documents of 1024 tokens, seed 0"
    assert profile.importance.std() > 0.1
    assert not list(tmp_path.rglob("*.done"))


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
    command = [sys.executable, "-c", script, here, str(smollm2), plan]
    # The script, the server, and at least two processes that SGLang spawned.
    _, left = interrupt(command, tmp_path, signal.SIGINT, lambda: len(processes_of(tmp_path)) >= 4)
    assert not left, [process.cmdline() for process in left]
