# SPDX-License-Identifier: Apache-2.0
"""Folders that are built once."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from shplb.hf.folder import build_folder


def write(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"12345")


def fail(folder: Path) -> None:
    write(folder)
    raise RuntimeError("out of disk")


def refuse(folder: Path) -> None:
    raise AssertionError("built twice")


def test_builds_once_per_key(tmp_path: Path) -> None:
    out_dir = build_folder(tmp_path / "deep" / "model", "key 1", write)
    assert (out_dir / "a.bin").stat().st_mode & 0o044
    assert build_folder(out_dir, "key 1", refuse) == out_dir
    with pytest.raises(AssertionError, match="built twice"):
        build_folder(out_dir, "key 2", refuse)
    assert build_folder(out_dir, "key 2", write) == out_dir


def test_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    out_dir = build_folder(tmp_path / "model", "key 1", write)
    with pytest.raises(RuntimeError, match="out of disk"):
        build_folder(out_dir, "key 2", fail)
    assert build_folder(out_dir, "key 1", refuse) == out_dir
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.lock"}


def test_kill_while_the_old_folder_goes_leaves_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_dir = build_folder(tmp_path / "model", "key 1", write)

    def die(folder: Path, **_: object) -> None:
        for path in folder.glob("*"):
            path.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            build_folder(out_dir, "key 2", write)
    assert build_folder(out_dir, "key 2", refuse) == out_dir


@pytest.mark.parametrize("damage", ["truncate", "remove", "add", "stamp"])
def test_damaged_folder_is_built_again(tmp_path: Path, damage: str) -> None:
    out_dir = build_folder(tmp_path / "model", "key", write)
    if damage == "truncate":
        (out_dir / "a.bin").write_bytes(b"1")
    elif damage == "remove":
        (out_dir / "a.bin").unlink()
    elif damage == "add":
        (out_dir / "b.bin").write_bytes(b"1")
    else:
        (out_dir / "shplb_stamp.json").write_text('{"key": "key", "files": {}}')
    build_folder(out_dir, "key", write)
    assert (out_dir / "a.bin").read_bytes() == b"12345"


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds files that shplb did not write"):
        build_folder(tmp_path, "key", write)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def _build_slowly(out_dir: Path) -> None:
    def build(folder: Path) -> None:
        time.sleep(0.2)
        (folder / "pid").write_text(str(os.getpid()))
        (out_dir.parent / f"built_{os.getpid()}").touch()

    build_folder(out_dir, "key", build)


def test_concurrent_callers_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build_slowly, args=(tmp_path / "model",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("built_*"))) == 1
