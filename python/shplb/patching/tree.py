# SPDX-License-Identifier: Apache-2.0
"""The SGLang tree to patch: where it is, which version it is, what state its files are in. Never imports sglang."""

import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .refusal import PatchRefused
from .upstream import Upstream


class State(StrEnum):
    """State of a tree: every file as after the patch, every file as before it, or anything else."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    MODIFIED = "modified"


@dataclass(frozen=True)
class Tree:
    """The sglang package directory, and the root of the source checkout it lies in, if it lies in one."""

    package: Path
    checkout: Path | None


def locate_tree(target: Path | None, upstream: Upstream) -> Tree:
    """The tree at `target`: a checkout root, a sglang package directory, or None for the running interpreter's.

    Raises PatchRefused when there is no SGLang.
    """
    if target is None:
        package = _installed_package(upstream)
    elif (target / "python" / "sglang" / "srt").is_dir():
        package = target / "python" / "sglang"
    elif (target / "srt").is_dir():
        package = target
    else:
        raise PatchRefused(
            f"{target} holds no SGLang, expected a source checkout (with python/sglang/srt) or a sglang package "
            f"directory (with srt): give --target one of these, or leave it out for the installed sglang"
        )
    package = package.resolve()
    root = package.parents[1]
    return Tree(package, root if package.parent.name == "python" and (root / ".git").exists() else None)


def _installed_package(upstream: Upstream) -> Path:
    # find_spec of a top-level name reads its directory entry only; importing sglang would load torch.
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise PatchRefused(
            f"sglang is not installed in this Python, expected sglang=={upstream.version}: "
            f"install it with `uv pip install sglang=={upstream.version}` or give --target"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def tree_version(tree: Tree) -> str | None:
    """Version of the tree by its wheel metadata, its `_version.py` or its git tag; None when nothing tells it.

    A checkout whose HEAD carries no tag gives its commit, so that it differs from every pinned version.
    """
    for distribution in importlib.metadata.distributions(name="sglang", path=[str(tree.package.parent)]):
        return distribution.version
    version_file = tree.package / "_version.py"
    if version_file.is_file():
        text = version_file.read_text(encoding="utf-8")
        if found := re.search(r"^(?:__version__\s*=\s*)?version\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE):
            return found.group(1)
    return _git_version(tree.checkout) if tree.checkout else None


def _git_version(checkout: Path) -> str | None:
    tags = _git(checkout, "tag", "--points-at", "HEAD", "v*")
    if tags:
        return tags.split()[0].removeprefix("v")
    return _git(checkout, "rev-parse", "HEAD")


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def check_version(tree: Tree, upstream: Upstream) -> None:
    """Raises PatchRefused unless the tree is the pinned version.

    A tree that nothing tells the version of (an unpacked archive) passes here: the file hashes decide it.
    """
    found = tree_version(tree)
    if found in (None, upstream.version, upstream.commit):
        return
    raise PatchRefused(
        f"SGLang in {tree.package} is version {found}, expected exactly {upstream.version}: "
        f"install it with `uv pip install sglang=={upstream.version}` (a checkout: git checkout {upstream.tag})"
    )


def tree_state(tree: Tree, upstream: Upstream) -> tuple[State, str]:
    """State of the tree by the sha256 of its files, and for MODIFIED one sentence that names the first such file."""
    hashes = {file.path: file_hash(tree.package / file.path) for file in upstream.files}
    if all(hashes[file.path] == file.after for file in upstream.files):
        return State.APPLIED, ""
    if all(hashes[file.path] == file.before for file in upstream.files):
        return State.NOT_APPLIED, ""
    for file in upstream.files:
        if hashes[file.path] not in (file.before, file.after):
            found = f"sha256 {hashes[file.path][:12]}" if hashes[file.path] else "no such file"
            wanted = f"sha256 {file.before[:12]} (stock) or {file.after[:12]} (patched)"
            fault = f"{tree.package / file.path} was modified: {found}, expected {wanted}"
            break
    else:
        some = next(file.path for file in upstream.files if hashes[file.path] == file.after)
        fault = f"{tree.package} is patched in part: {some} is patched, expected all files or none"
    return State.MODIFIED, f"{fault}; {upstream.reinstall}"


def file_hash(path: Path) -> str:
    """sha256 (hex) of the file, empty when there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""
