# SPDX-License-Identifier: Apache-2.0
"""Switch of a whole directory in one step: a hardlinked copy beside it, then one exchange of the two names."""

import ctypes
import os
import shutil
from pathlib import Path

from .durable import copy_owner, sync_directory, write_replacement

# Beside the live directory, so that both names lie on one filesystem. Before the exchange it holds the tree to come,
# after it the old one: garbage at any time, to whoever finds it under the lock.
STAGING_NAME = ".shplb-patch.staging"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def switch_by_exchange(package: Path, contents: dict[str, bytes]) -> None:
    """Replaces the files (path inside `package` -> content) in one atomic step.

    Raises OSError, with the live tree untouched, where this cannot work: no RENAME_EXCHANGE, a directory that cannot
    be renamed (overlayfs), no hardlinks, files of another user, a symbolic link in place of the directory.
    """
    live = package / os.path.commonpath([Path(path).parent for path in contents])
    staging = package / STAGING_NAME
    if live.is_symlink() or live == package:
        raise OSError(f"{live} cannot be exchanged")
    try:
        _copy_linked(live, staging, {package / path: content for path, content in contents.items()})
        sync_directory(package)
        rename_exchange(live, staging)
        sync_directory(package)
    finally:
        # On an error this is the unused copy; afterwards the old tree, whose files may be linked elsewhere.
        remove_staging(package)


def remove_staging(package: Path) -> None:
    """Removes what a switch, or one that was killed, left beside the live directory."""
    shutil.rmtree(package / STAGING_NAME, ignore_errors=True)


def _copy_linked(live: Path, copy: Path, contents: dict[Path, bytes]) -> None:
    copy.mkdir()
    with os.scandir(live) as entries:
        for entry in entries:
            source, target = Path(entry.path), copy / entry.name
            if source in contents:
                write_replacement(target, contents[source], source)
            elif entry.is_symlink():
                shutil.copy2(source, target, follow_symlinks=False)
            elif entry.is_dir():
                _copy_linked(source, target, contents)
            else:
                os.link(source, target)
    # Last, since every new entry changes the mtime that Python's import caches listen to.
    shutil.copystat(live, copy)
    copy_owner(live, copy)
    sync_directory(copy)


def rename_exchange(left: Path, right: Path) -> None:
    """Exchanges two names of one filesystem atomically (Linux renameat2). Raises OSError where that is impossible."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError as error:
        raise OSError("this C library has no renameat2") from error
    if renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(left))
