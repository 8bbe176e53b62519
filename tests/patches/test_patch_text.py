# SPDX-License-Identifier: Apache-2.0
"""The patch files: small, documented, and what git makes from the stock and the patched files."""

import compileall
import os
import re
import subprocess
from pathlib import Path

import whatthepatch

from shplb import patching
from shplb.patching.upstream import PACKAGE_PREFIX, Upstream, patches_directory

MAX_FILES = 3
MAX_ADDED_LINES = 40
# No configuration of the machine may change what git writes.
GIT_ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def patch_paths() -> list[Path]:
    return sorted(patches_directory().glob("*.patch"))


def test_patch_stays_within_its_cap() -> None:
    diffs = [diff for path in patch_paths() for diff in whatthepatch.parse_patch(path.read_text()) if diff.changes]
    added = sum(change.old is None for diff in diffs for change in diff.changes)
    removed = sum(change.new is None for diff in diffs for change in diff.changes)
    assert len({diff.header.new_path for diff in diffs}) <= MAX_FILES
    assert 0 < added <= MAX_ADDED_LINES
    assert removed <= 1


def test_patch_says_why_and_until_when() -> None:
    for path in patch_paths():
        message = path.read_text().split("\n---\n")[0]
        for heading in ("What: ", "Why: ", "How: ", "Remove-when: "):
            assert f"\n{heading}" in message, f"{path.name} lacks {heading!r}"


def test_flags_come_last(upstream: Upstream) -> None:
    assert upstream.files[-1].path == "srt/server_args.py"


def test_manifest_lists_the_files_of_the_patch(upstream: Upstream) -> None:
    named = re.findall(r"^\+\+\+ b/(\S+)$", upstream.patch_text, re.MULTILINE)
    assert sorted(named) == sorted(PACKAGE_PREFIX + file.path for file in upstream.files)


def test_git_regenerates_the_patch(
    package: Path, stock_files: dict[str, bytes], upstream: Upstream, tmp_path: Path
) -> None:
    (patch,) = patch_paths()
    header, message = _message(patch)
    repository = tmp_path / "repository"
    repository.mkdir()
    _git(repository, header, "init", "-q")
    for path, content in stock_files.items():
        (repository / PACKAGE_PREFIX / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / PACKAGE_PREFIX / path).write_bytes(content)
    _git(repository, header, "add", "-A")
    _git(repository, header, "commit", "-q", "-m", "stock")
    patching.apply(package)
    for path in stock_files:
        (repository / PACKAGE_PREFIX / path).write_bytes((package / path).read_bytes())
    _git(repository, header, "commit", "-q", "-a", "-F", "-", given=message)
    style = ("--zero-commit", "--no-signature", "-N", "--full-index", "--stdout", "-1")
    assert _git(repository, header, "format-patch", *style) == patch.read_text()


def test_patched_files_compile(package: Path, upstream: Upstream) -> None:
    patching.apply(package)
    for file in upstream.files:
        assert compileall.compile_file(package / file.path, quiet=1, force=True)


def _message(patch: Path) -> tuple[dict[str, str], str]:
    head, body = patch.read_text().split("\n---\n")[0].split("\n\n", 1)
    fields = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    found = re.fullmatch(r"(.*) <(.*)>", fields["From"])
    assert found
    who = {"NAME": found.group(1), "EMAIL": found.group(2), "DATE": fields["Date"]}
    environment = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    return environment, f"{fields['Subject'].removeprefix('[PATCH] ')}\n\n{body}\n"


def _git(repository: Path, who: dict[str, str], *arguments: str, given: str = "") -> str:
    command = ["git", "-C", str(repository), *arguments]
    environment = {**GIT_ENVIRONMENT, **who}
    return subprocess.run(command, env=environment, input=given, capture_output=True, text=True, check=True).stdout
