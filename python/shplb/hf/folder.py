# SPDX-License-Identifier: Apache-2.0
"""Folders that are built once: whole or absent, and reused while what they were built from is the same."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from shplb.locking import locked

STAMP_NAME = "shplb_stamp.json"


class Stamp(msgspec.Struct, frozen=True):
    """What a folder was built from, and the bytes of each file in it."""

    key: str
    files: dict[str, int]


def build_folder(out_dir: Path, key: str, build: Callable[[Path], None]) -> Path:
    """Return ``out_dir``, calling ``build(empty folder)`` first unless it holds a complete result for ``key``.

    Processes that ask for the same folder at once wait for one of them. A crash leaves ``out_dir`` as it was, or absent
    between two renames. An older result of ours is replaced; raises ValueError if ``out_dir`` holds anything else.
    """
    out_dir = out_dir.absolute()
    if _is_complete(out_dir, key):
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with locked(out_dir.parent / f".{out_dir.name}.lock"):
        if _is_complete(out_dir, key):
            return out_dir
        if out_dir.exists() and not _is_replaceable(out_dir):
            raise ValueError(
                f"{out_dir} already holds files that shplb did not write; give another folder or empty this one"
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
        try:
            build(temporary)
            _open_to_readers(temporary)
            stamp = Stamp(key=key, files=_sizes(temporary))
            (temporary / STAMP_NAME).write_bytes(msgspec.json.encode(stamp))
            # A folder can't be renamed onto one with files; the old result keeps its stamp until it is out of the way.
            old = temporary.with_name(f"{temporary.name}.old")
            if out_dir.exists():
                os.rename(out_dir, old)
            os.rename(temporary, out_dir)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def _is_complete(folder: Path, key: str) -> bool:
    stamp = _stamp(folder)
    return stamp is not None and stamp.key == key and stamp.files == _sizes(folder)


def _is_replaceable(folder: Path) -> bool:
    return folder.is_dir() and (_stamp(folder) is not None or not any(folder.iterdir()))


def _stamp(folder: Path) -> Stamp | None:
    try:
        return msgspec.json.decode((folder / STAMP_NAME).read_bytes(), type=Stamp)
    except (OSError, msgspec.DecodeError):
        return None


def _sizes(folder: Path) -> dict[str, int]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != STAMP_NAME)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(paths)}


def _open_to_readers(folder: Path) -> None:
    """Give the usual rights: mkdtemp and safetensors make what they write private."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
