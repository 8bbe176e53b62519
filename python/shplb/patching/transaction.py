# SPDX-License-Identifier: Apache-2.0
"""All-or-nothing replacement of files in a tree, and the repair of one that was killed."""

import os
from collections.abc import Iterable
from pathlib import Path

from .exchange import STAGING_NAME, remove_staging, switch_by_exchange
from .journal import finish_journal, has_leftovers, switch_by_journal
from .lock import LOCK_NAME
from .refusal import PatchRefused


def switch_files(package: Path, contents: dict[str, bytes]) -> str:
    """Replaces the files (path inside `package` -> content); returns how: "exchange" or "journal".

    Call under the lock, after `repair`. A kill leaves the complete old or the complete new tree; where the file system
    cannot exchange directories, it may leave a mixed one, which behaves as stock and which `repair` finishes.
    Raises PatchRefused, with the tree untouched, when it cannot be written.
    """
    try:
        switch_by_exchange(package, contents)
    except OSError:
        pass
    else:
        return "exchange"
    try:
        switch_by_journal(package, contents)
    except OSError as error:
        raise PatchRefused(
            f"{error.filename or package} cannot be written ({error.strerror}), expected a writable tree with room for "
            f"a few MB: free space, or run as the owner of {package}"
        ) from error
    return "journal"


def needs_repair(package: Path, paths: Iterable[str]) -> bool:
    """Whether a killed run left something behind (or a living one is at work)."""
    own = (package / STAGING_NAME, package / LOCK_NAME)
    return any(os.path.lexists(path) for path in own) or has_leftovers(package, paths)


def repair(package: Path, paths: Iterable[str]) -> None:
    """Finishes or clears what a killed run left. Call under the lock. Raises PatchRefused when it cannot."""
    paths = tuple(paths)
    if not needs_repair(package, paths):
        return
    try:
        remove_staging(package)
        finish_journal(package, paths)
    except (OSError, ValueError) as error:
        raise PatchRefused(
            f"{package} holds the remains of an interrupted run that cannot be finished ({error}), expected a writable "
            f"tree and a whole journal: reinstall SGLang"
        ) from error
