# SPDX-License-Identifier: Apache-2.0
"""A run that dies or fails at any file system call leaves the complete old or the complete new tree."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tree_snapshot import Snapshot, copy_tree, take_snapshot

from shplb import patching
from shplb.patching import State, durable, exchange
from shplb.patching.upstream import Upstream

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

# Python's audit events of calls that change the file system (and a few that only read it). Before each of them the
# child may die, so that every state between two changes is seen. fsync has no event and is counted by hand.
FILE_SYSTEM_EVENTS = ("open", "os.", "fcntl.", "shutil.", "ctypes.dlsym")
MAX_CALLS = 2000


@dataclass(frozen=True)
class Scene:
    """One direction of the switch: a tree to start from, and both complete trees."""

    operation: Callable[[Path], object]
    start: Path
    old: Snapshot
    new: Snapshot


@pytest.fixture(params=["apply", "revert"])
def scene(request: pytest.FixtureRequest, package: Path, tmp_path: Path) -> Scene:
    stock = copy_tree(package, tmp_path / "stock" / "sglang")
    patching.apply(package)
    patched = copy_tree(package, tmp_path / "patched" / "sglang")
    if request.param == "apply":
        return Scene(patching.apply, stock, take_snapshot(stock), take_snapshot(patched))
    return Scene(patching.revert, patched, take_snapshot(patched), take_snapshot(stock))


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    # A killed process loses nothing that it wrote; fsync matters for power cuts only and would take minutes here.
    monkeypatch.setattr(durable.os, "fsync", lambda _descriptor: None)


@pytest.fixture(params=["exchange", "journal"])
def switch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "journal":
        monkeypatch.setattr(exchange, "rename_exchange", _impossible)
    return str(request.param)


def _impossible(left: Path, right: Path) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(left))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_kill_at_any_call(scene: Scene, switch: str, package: Path, upstream: Upstream) -> None:
    killed = 0
    for call in range(MAX_CALLS):
        copy_tree(scene.start, package)
        status = _run_in_child(scene.operation, package, call, _die)
        if not os.WIFSIGNALED(status):
            break
        killed += 1
        _check_moment(scene, switch, package, upstream, call)
        _check_repair(scene, package, call)
    assert os.waitstatus_to_exitcode(status) == 0
    assert killed > 30
    assert take_snapshot(package) == scene.new


def test_failure_at_any_call(scene: Scene, switch: str, package: Path, upstream: Upstream) -> None:
    for call in range(MAX_CALLS):
        copy_tree(scene.start, package)
        status = _run_in_child(scene.operation, package, call, _fail)
        assert os.WIFEXITED(status)
        if os.waitstatus_to_exitcode(status) == 3:  # the run ended before this call
            break
        _check_moment(scene, switch, package, upstream, call)
        _check_repair(scene, package, call)
    assert call > 30
    assert take_snapshot(package) == scene.new


def _check_moment(scene: Scene, switch: str, package: Path, upstream: Upstream, call: int) -> None:
    """The tree right after the kill, before any other run."""
    found = _without_leftovers(take_snapshot(package))
    if switch == "exchange":
        assert found in (scene.old, scene.new), f"mixed tree after call {call}"
        return
    patched = [found[file.path][1] != _stock(scene, file.path) for file in upstream.files]
    # With server_args.py patched everything is; so a mixed tree knows no flag and behaves as stock.
    assert all(patched) or not patched[-1], f"flags without hooks after call {call}"


def _check_repair(scene: Scene, package: Path, call: int) -> None:
    """Any next command makes the tree whole and clears what was left; the operation can then be done."""
    assert patching.check(package).state is not State.MODIFIED, f"after call {call}"
    assert take_snapshot(package) in (scene.old, scene.new), f"after call {call}"
    scene.operation(package)
    assert take_snapshot(package) == scene.new, f"after call {call}"


def _stock(scene: Scene, path: str) -> bytes:
    snapshot = scene.old if scene.operation is patching.apply else scene.new
    return snapshot[path][1]


def _without_leftovers(snapshot: Snapshot) -> Snapshot:
    return {name: entry for name, entry in snapshot.items() if ".shplb-patch." not in name}


def _run_in_child(operation: Callable[[Path], object], package: Path, call: int, fault: Callable[[], None]) -> int:
    """Runs the operation in a fork, with `fault` before file system call number `call`; returns the wait status.

    Exit codes: 0 done, 3 done without reaching that call, 4 stopped by an error.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            fault()

    def watch(event: str, _arguments: object) -> None:
        if event.startswith(FILE_SYSTEM_EVENTS):
            count()

    durable.os.fsync = lambda _descriptor: count()
    try:
        sys.addaudithook(watch)
        operation(package)
        code = 0 if fault is _die or calls > call else 3
    except OSError:
        code = 4
    except patching.PatchRefused:
        code = 4
    finally:
        os._exit(code)
