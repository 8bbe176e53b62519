# SPDX-License-Identifier: Apache-2.0
"""Apply, check and revert on small trees, and every refusal."""

import errno
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tree_snapshot import take_snapshot
from typer.testing import CliRunner

from shplb import patching
from shplb.patching import PatchRefused, State, exchange, lock
from shplb.patching.command import app
from shplb.patching.upstream import Upstream


@pytest.fixture(params=["exchange", "journal"])
def switch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "journal":
        monkeypatch.setattr(exchange, "rename_exchange", _impossible)
    return str(request.param)


def _impossible(left: Path, right: Path) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link", str(left))


def test_round_trip_gives_the_stock_tree_back(package: Path, switch: str, stock_files: dict[str, bytes]) -> None:
    stock = take_snapshot(package)
    assert patching.check(package).state is State.NOT_APPLIED
    assert patching.apply(package).switch == switch
    assert patching.check(package).state is State.APPLIED
    patched = take_snapshot(package)
    assert {name for name in stock if stock[name] != patched[name]} == set(stock_files)
    assert stock.keys() == patched.keys()
    assert patching.revert(package).switch == switch
    assert take_snapshot(package) == stock


def test_second_run_changes_nothing(package: Path, switch: str) -> None:
    assert patching.revert(package).switch == "none"
    patching.apply(package)
    times = {path: path.lstat().st_mtime_ns for path in package.rglob("*")}
    assert patching.apply(package).switch == "none"
    assert {path: path.lstat().st_mtime_ns for path in package.rglob("*")} == times


def test_other_links_of_a_file_keep_their_content(
    package: Path, switch: str, stock_files: dict[str, bytes], tmp_path: Path
) -> None:
    # As uv installs: every file is a second name of a file in its cache.
    cache = {path: tmp_path / f"cached-{index}" for index, path in enumerate(stock_files)}
    for path, cached in cache.items():
        os.link(package / path, cached)
    patching.apply(package)
    assert {path: cached.read_bytes() for path, cached in cache.items()} == stock_files
    assert all(cached.stat().st_nlink == 1 for cached in cache.values())


def test_neighbours_keep_inode_mtime_and_mode(package: Path, switch: str) -> None:
    names = ["srt/models/llama.py", "srt/model_loader/run.sh", "srt/link.py"]
    before = [(package / name).lstat() for name in names]
    patching.apply(package)
    after = [(package / name).lstat() for name in names]
    assert [(s.st_mtime_ns, s.st_mode) for s in after] == [(s.st_mtime_ns, s.st_mode) for s in before]
    assert [s.st_ino for s in after[:2]] == [s.st_ino for s in before[:2]]


def test_mode_is_kept_and_old_bytecode_is_not_used(package: Path, switch: str, upstream: Upstream) -> None:
    target = package / upstream.files[0].path
    target.chmod(0o640)
    old = target.stat()
    compiled = Path(py_compile.compile(str(target), doraise=True) or "")
    patching.apply(package)
    assert target.stat().st_mode == old.st_mode
    # PEP 552: bytes 8..12 mtime, 12..16 size of the source the .pyc was made from.
    recorded = compiled.read_bytes()[8:16]
    now = target.stat()
    assert recorded != int(now.st_mtime).to_bytes(4, "little") + now.st_size.to_bytes(4, "little")
    assert int(now.st_mtime) > int(old.st_mtime)


def test_symbolic_link_is_replaced_not_followed(package: Path, switch: str, upstream: Upstream, tmp_path: Path) -> None:
    # As uv installs with link-mode=symlink.
    target = package / upstream.files[0].path
    cached = tmp_path / "cached.py"
    target.rename(cached)
    target.symlink_to(cached)
    content = cached.read_bytes()
    patching.apply(package)
    assert cached.read_bytes() == content
    assert patching.check(package).state is State.APPLIED


@pytest.mark.parametrize("operation", [patching.apply, patching.revert])
def test_modified_file_is_refused_with_nothing_written(
    package: Path, upstream: Upstream, operation: Callable[[Path], object]
) -> None:
    with (package / upstream.files[1].path).open("a") as stream:
        stream.write("# changed\n")
    before = take_snapshot(package)
    with pytest.raises(PatchRefused, match=f"loader.py was modified.*expected.*sglang=={upstream.version}"):
        operation(package)
    assert take_snapshot(package) == before
    assert patching.check(package).state is State.MODIFIED


def test_tree_patched_in_part_is_refused(package: Path, stock_files: dict[str, bytes], upstream: Upstream) -> None:
    patching.apply(package)
    path = upstream.files[-1].path
    (package / path).write_bytes(stock_files[path])
    with pytest.raises(PatchRefused, match="patched in part"):
        patching.apply(package)


def test_missing_file_is_refused(package: Path, upstream: Upstream) -> None:
    (package / upstream.files[0].path).unlink()
    with pytest.raises(PatchRefused, match="no such file"):
        patching.apply(package)


@pytest.mark.parametrize("operation", [patching.apply, patching.check, patching.revert])
def test_other_version_is_refused(package: Path, operation: Callable[[Path], object]) -> None:
    (package / "_version.py").write_text("__version__ = version = '0.5.16'\n")
    before = take_snapshot(package)
    with pytest.raises(PatchRefused, match=r"version 0\.5\.16, expected exactly 0\.5\.15\.post1"):
        operation(package)
    assert take_snapshot(package) == before


def test_wheel_metadata_decides_the_version(package: Path) -> None:
    information = package.parent / "sglang-0.5.14.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.14\n")
    with pytest.raises(PatchRefused, match=r"version 0\.5\.14"):
        patching.apply(package)


def test_directory_without_sglang_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatchRefused, match="holds no SGLang"):
        patching.apply(tmp_path)


def test_missing_sglang_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(PatchRefused, match="sglang is not installed"):
        patching.apply()


def test_read_only_tree_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated, since permissions do not bind root, who runs many a container.
    def refuse(path: Path, *_rest: int) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    before = take_snapshot(package)
    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(PatchRefused, match="cannot be written"):
        patching.apply(package)
    monkeypatch.undo()
    assert take_snapshot(package) == before


def test_second_run_at_the_same_time_is_refused(package: Path) -> None:
    with lock.tree_lock(package), pytest.raises(PatchRefused, match="another run"):
        patching.apply(package)
    assert patching.apply(package).switch == "exchange"


def test_checkout_is_patched_at_its_tag_only(make_package: Callable[[str], Path], tmp_path: Path) -> None:
    package = make_package("checkout/python/sglang")
    (package / "_version.py").unlink()
    root = tmp_path / "checkout"
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=n@example.invalid"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], check=True)
    with pytest.raises(PatchRefused, match=r"git checkout v0\.5\.15\.post1"):
        patching.apply(root)
    subprocess.run([*git, "tag", "v0.5.15.post1"], check=True)
    assert patching.apply(root).state is State.APPLIED
    subprocess.run([*git, "diff", "--stat", "--exit-code", "--", "python/sglang/__init__.py"], check=True)
    patching.revert(root)
    status = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True, text=True)
    assert status.stdout == ""


def test_command_line_texts_and_exit_codes(package: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    steps = [
        ("check", 1, "not applied"),
        ("revert", 0, "not applied"),
        ("apply", 0, "applied"),
        ("apply", 0, "already applied"),
        ("check", 0, "applied"),
        ("revert", 0, "reverted"),
    ]
    for name, code, text in steps:
        result = runner.invoke(app, [name, "--target", str(package)])
        assert (result.exit_code, result.output.split(":")[0].startswith(text)) == (code, True), result.output
    result = runner.invoke(app, ["apply", "--target", str(tmp_path)])
    assert result.exit_code == 1
    assert "refused" in result.output


def test_module_command_finds_the_tree_without_importing_it(package: Path) -> None:
    # Importing this sglang would fail, so finding it shows that it was not imported.
    (package / "__init__.py").write_text("raise ImportError\n")
    sources = Path(patching.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{package.parent}{os.pathsep}{sources}"}
    run = [sys.executable, "-m", "shplb.patching", "apply"]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=package.parent, check=True)
    assert result.stdout == f"applied: {package}\n"


def test_import_needs_neither_torch_nor_sglang() -> None:
    sources = Path(patching.__file__).parents[2]
    code = "import sys, shplb.patching.command; print({'torch', 'sglang'} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    run = [sys.executable, "-c", code]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
