# SPDX-License-Identifier: Apache-2.0
"""Comparing and copying small trees."""

import os
import shutil
from pathlib import Path

Snapshot = dict[str, tuple[str, bytes, int]]


def take_snapshot(package: Path) -> Snapshot:
    """Kind, content and mode of every entry, leftovers of the patch tool included."""
    entries: Snapshot = {}
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.is_symlink():
            entries[name] = ("link", os.fsencode(os.readlink(path)), 0)
        elif path.is_dir():
            entries[name] = ("directory", b"", path.stat().st_mode)
        else:
            entries[name] = ("file", path.read_bytes(), path.stat().st_mode)
    return entries


def copy_tree(source: Path, target: Path) -> Path:
    """A fresh copy with modes, mtimes and links; `target` is replaced."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, symlinks=True))
