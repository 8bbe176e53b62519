# SPDX-License-Identifier: Apache-2.0
"""A managed process and all that it started are gone when its parent leaves, however the parent ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import is_one_sentence

from shplb.processes import ManagedProcess

# Starts a grandchild that sleeps, writes both pids to argv[1], sleeps. argv[2] "stubborn": both ignore SIGTERM.
FAMILY = textwrap.dedent("""
    import os, pathlib, signal, subprocess, sys, time
    if sys.argv[2] == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    temporary = pathlib.Path(sys.argv[1] + ".part")
    temporary.write_text(f"{os.getpid()} {child.pid}")
    temporary.rename(sys.argv[1])
    time.sleep(300)
""")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def pids(path: Path) -> list[int]:
    assert wait_for(path.exists)
    found = [int(pid) for pid in path.read_text().split()]
    assert all(map(alive, found))
    return found


def family(path: Path, kind: str = "obedient") -> list[str]:
    return [sys.executable, "-c", FAMILY, str(path), kind]


def test_leaving_the_block_ends_child_and_grandchild(tmp_path: Path) -> None:
    with ManagedProcess(family(tmp_path / "pids"), log=tmp_path / "log") as process:
        found = pids(tmp_path / "pids")
        assert process.returncode is None
    assert wait_for(lambda: not any(map(alive, found)), 2.0)
    assert process.returncode == -signal.SIGTERM


def test_who_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with ManagedProcess(family(tmp_path / "pids", "stubborn"), log=tmp_path / "log", grace_s=0.5) as process:
        found = pids(tmp_path / "pids")
    assert wait_for(lambda: not any(map(alive, found)), 2.0)
    assert process.returncode == -signal.SIGKILL


def test_grandchild_dies_after_the_child_has_ended(tmp_path: Path) -> None:
    script = FAMILY.rpartition("time.sleep(300)")[0]
    with ManagedProcess([sys.executable, "-c", script, str(tmp_path / "pids"), "x"], log=tmp_path / "log") as process:
        assert wait_for((tmp_path / "pids").exists)
        grandchild = int((tmp_path / "pids").read_text().split()[1])
        assert process.wait() == 0
        assert alive(grandchild)
    assert wait_for(lambda: not alive(grandchild), 2.0)


def run_until(error: BaseException, process: ManagedProcess, path: Path, found: list[int]) -> None:
    with process:
        found += pids(path)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError(), SystemExit(3)], ids=repr)
def test_errors_in_the_block_end_the_group_and_go_on(tmp_path: Path, error: BaseException) -> None:
    found: list[int] = []
    process = ManagedProcess(family(tmp_path / "pids"), log=None)
    with pytest.raises(type(error)) as caught:
        run_until(error, process, tmp_path / "pids", found)
    assert caught.value is error
    assert wait_for(lambda: not any(map(alive, found)), 2.0)


def test_second_interrupt_during_the_grace_period_kills_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> bool:
        raise KeyboardInterrupt

    found: list[int] = []
    process = ManagedProcess(family(tmp_path / "pids", "stubborn"), log=None)
    monkeypatch.setattr(process, "_alive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_until(RuntimeError(), process, tmp_path / "pids", found)
    assert wait_for(lambda: not any(map(alive, found)), 2.0)


PARENT = textwrap.dedent("""
    import signal, sys, time
    from shplb.processes import ManagedProcess
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with ManagedProcess(sys.argv[1:], log=None):
        time.sleep(300)
""")


def start_parent(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    command = [sys.executable, "-c", PARENT, *family(tmp_path / "pids")]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    return parent, pids(tmp_path / "pids")


def test_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    parent, (child, grandchild) = start_parent(tmp_path)
    try:
        parent.kill()
        parent.wait()
        assert wait_for(lambda: not alive(child), 5.0)
    finally:
        for pid in filter(alive, (child, grandchild)):
            os.kill(pid, signal.SIGKILL)


def test_ctrl_c_reaches_a_parent_whose_child_has_its_own_group(tmp_path: Path) -> None:
    parent, found = start_parent(tmp_path)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(timeout=30) != 0
    assert wait_for(lambda: not any(map(alive, found)), 2.0)


def test_log_environment_and_tail(tmp_path: Path) -> None:
    code = "import os, sys; print('out', os.environ['SHPLB_TEST']); sys.stderr.write('err\\n'); print('a\\nb\\nc')"
    log = tmp_path / "folder" / "log"
    with ManagedProcess([sys.executable, "-u", "-c", code], log=log, env={"SHPLB_TEST": "x"}) as process:
        assert process.wait() == 0
    assert log.read_text() == "out x\nerr\na\nb\nc\n"
    assert process.tail(2) == "b\nc"
    assert process.with_log("it ended") == f"it ended; its log {process.log} ends:\n{process.tail()}"


@pytest.mark.parametrize(
    ("printed", "cause"),
    [
        ("S-HPLB can't start: the plan is of another model.", "the plan is of another model"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "the GPU has too little memory"),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "too little memory"),
    ],
)
def test_known_causes_are_named_instead_of_a_traceback(tmp_path: Path, printed: str, cause: str) -> None:
    code = f"print('Traceback (most recent call last):'); print({printed!r}); print('exit code 1')"
    with ManagedProcess([sys.executable, "-c", code], log=tmp_path / "log") as process:
        process.wait()
    told = process.with_log("SGLang ended")
    assert told.startswith("SGLang ended, since ")
    assert cause in told
    assert is_one_sentence(told)
    assert "SHPLB_TEST" not in os.environ
