# SPDX-License-Identifier: Apache-2.0
"""Files and directories that survive a crash, written as new inodes."""

import os
import shutil
from pathlib import Path


def write_replacement(path: Path, content: bytes, live: Path) -> None:
    """Writes `content` to the new file `path` with mode, owner and attributes of `live`, and a fresh mtime.

    Never opens `live` for writing: uv hardlinks installed files to its cache, so writing in place
    would change the cached copy, and with it every other environment and every later install.
    The mtime is fresh because Python trusts a .pyc whose recorded mtime and size equal those of the source.
    Raises FileExistsError when `path` exists, OSError otherwise.
    """
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        shutil.copystat(live, path)
        copy_owner(live, path)
        os.utime(path)
        os.fsync(stream.fileno())


def copy_owner(source: Path, copy: Path) -> None:
    """Gives `copy` the owner of `source`. Raises PermissionError when that is another user and we are not root."""
    wanted, found = source.stat(), copy.stat()
    if (wanted.st_uid, wanted.st_gid) != (found.st_uid, found.st_gid):
        os.chown(copy, wanted.st_uid, wanted.st_gid)


def sync_directory(path: Path) -> None:
    """Makes the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
