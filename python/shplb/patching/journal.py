# SPDX-License-Identifier: Apache-2.0
"""Switch of files one by one, with a journal that lets the next run finish it.

Weaker than the exchange: between the first and the last rename (milliseconds) the tree is mixed, and stays so after a
kill there until the next apply, check or revert. The order of the files makes a mixed tree behave as stock.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from .durable import sync_directory, write_replacement
from .tree import file_hash

JOURNAL_NAME = ".shplb-patch.journal"
_JOURNAL_PART = JOURNAL_NAME + ".part"
_NEW_SUFFIX = ".shplb-patch.new"


def switch_by_journal(package: Path, contents: dict[str, bytes]) -> None:
    """Replaces the files (path inside `package` -> content) in the order given.

    Raises OSError, with the live tree untouched, when a new file or the journal cannot be written.
    """
    try:
        entries = []
        for path, content in contents.items():
            write_replacement(_new(package, path), content, package / path)
            sync_directory((package / path).parent)
            after = hashlib.sha256(content).hexdigest()
            entries.append({"path": path, "before": file_hash(package / path), "after": after})
        _write_journal(package, entries)
    except OSError:
        discard_unfinished(package, contents)
        raise
    finish_journal(package, contents)


def finish_journal(package: Path, paths: Iterable[str]) -> None:
    """Finishes a switch whose journal is there; without one, or with one that no longer fits, removes what is left.

    A journal outlives a reinstall of SGLang, which removes only what it installed. So nothing is renamed unless every
    file is as it was before the switch with its new text waiting, or as it should be after it.
    """
    entries = _read_journal(package)
    if entries and all(_can_finish(package, entry) for entry in entries):
        for entry in entries:
            live = package / entry["path"]
            if file_hash(live) != entry["after"]:
                os.replace(_new(package, entry["path"]), live)
                sync_directory(live.parent)
    discard_unfinished(package, paths)


def has_leftovers(package: Path, paths: Iterable[str]) -> bool:
    """Whether a killed switch left anything behind."""
    names = (JOURNAL_NAME, _JOURNAL_PART, *(path + _NEW_SUFFIX for path in paths))
    return any((package / name).exists() for name in names)


def discard_unfinished(package: Path, paths: Iterable[str]) -> None:
    """Removes the journal first, then the new texts it spoke of."""
    for name in (JOURNAL_NAME, _JOURNAL_PART):
        (package / name).unlink(missing_ok=True)
    sync_directory(package)
    for path in paths:
        _new(package, path).unlink(missing_ok=True)


def _new(package: Path, path: str) -> Path:
    return package / (path + _NEW_SUFFIX)


def _write_journal(package: Path, entries: list[dict[str, str]]) -> None:
    part = package / (_JOURNAL_PART)
    with part.open("x", encoding="utf-8") as stream:
        json.dump(entries, stream)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(package / JOURNAL_NAME)
    sync_directory(package)


def _read_journal(package: Path) -> list[dict[str, str]]:
    try:
        entries: list[dict[str, str]] = json.loads((package / JOURNAL_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return entries


def _can_finish(package: Path, entry: dict[str, str]) -> bool:
    found = file_hash(package / entry["path"])
    if found == entry["after"]:
        return True
    return found == entry["before"] and file_hash(_new(package, entry["path"])) == entry["after"]
