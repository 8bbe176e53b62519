# SPDX-License-Identifier: Apache-2.0
"""One patch run at a time on a tree."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .refusal import PatchRefused

LOCK_NAME = ".shplb-patch.lock"


@contextmanager
def tree_lock(package: Path) -> Iterator[None]:
    """Holds the lock of the tree; the kernel drops it when the process dies, however it dies.

    Raises PatchRefused when another run holds it or the tree cannot be written.
    """
    path = package / LOCK_NAME
    descriptor = _open_locked(path, package)
    try:
        yield
    finally:
        # Removed while held; _open_locked sees by the inode that a file it waited for is gone.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path, package: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PatchRefused(
                f"{package} cannot be written ({error.strerror}), expected a writable tree: "
                f"run as its owner, or copy SGLang into an environment of yours"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise PatchRefused(
                f"another run is patching {package} ({error.strerror}), expected to be alone: wait for it and run again"
            ) from error
        if _same_file(descriptor, path):
            return descriptor
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
