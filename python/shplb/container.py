# SPDX-License-Identifier: Apache-2.0
"""Arrays and facts in one file on disk: safetensors with JSON metadata, versioned, checksummed, written atomically.

HeadProfile and ServingPlan share it, so that a damaged, truncated, foreign or future file gives the same clear
sentence everywhere. No pickle: reading an untrusted file can't run code.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

METADATA_KEY = "shplb"


class FileFormatError(ValueError):
    """A file that can't be used; the message is one sentence for the person who gave its name."""


def content_hash(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> str:
    """sha256 (hex) over names, dtypes, shapes, bytes and canonical JSON; the file's ``content_hash`` field excluded."""
    digest = hashlib.sha256()
    facts = {key: value for key, value in metadata.items() if key != "content_hash"}
    digest.update(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to a temporary name beside ``path``, flush it to disk, rename: a reader sees all or nothing."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_container(
    path: Path, kind: str, version: int, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> str:
    """Write one container file; returns its content hash."""
    facts = {**metadata, "kind": kind, "format_version": version}
    facts["content_hash"] = content_hash(tensors, facts)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_atomically(path, save(arrays, metadata={METADATA_KEY: json.dumps(facts, sort_keys=True)}))
    return str(facts["content_hash"])


def load_container(path: Path, kind: str, version: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a container written by :func:`save_container`.

    Raises:
        FileFormatError: the file is missing, truncated, damaged, of another kind, or of a version this release
            does not read; the message says which and what to do.
    """
    raw, tensors = _read(path, kind)
    facts = _parse_facts(path, kind, raw)
    if facts.get("kind") != kind:
        raise FileFormatError(f"{path} is a {facts.get('kind')}, but a {kind} is needed here.")
    found = facts.get("format_version")
    if found != version:
        newer = isinstance(found, int) and found > version
        advice = "update shplb to read it" if newer else "make it again with this shplb"
        raise FileFormatError(f"{path} has {kind} format version {found}, this shplb reads {version}: {advice}.")
    if content_hash(tensors, facts) != facts.get("content_hash"):
        raise FileFormatError(f"{path} is damaged: its checksum does not match its content; make it again with shplb.")
    return tensors, facts


def _read(path: Path, kind: str) -> tuple[str, dict[str, np.ndarray]]:
    try:
        if not path.is_file():
            raise FileFormatError(f"{path} is not a file: give the path of a {kind} made by shplb.")
        with safe_open(path, framework="numpy") as stream:
            raw = (stream.metadata() or {}).get(METADATA_KEY)
            if raw is None:
                raise FileFormatError(f"{path} is a safetensors file but not a {kind}: give a file made by shplb.")
            return raw, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    except FileFormatError:
        raise
    # A TypeError or AttributeError stands for a dtype that numpy lacks, such as bfloat16 or float8.
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is damaged or not a {kind} ({error}): make it again with shplb.") from None


def _parse_facts(path: Path, kind: str, raw: str) -> dict[str, Any]:
    try:
        facts = json.loads(raw)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise FileFormatError(f"{path} is damaged: its {kind} metadata is not JSON; make it again with shplb.")
    return facts


def require_array(
    path: Path, tensors: Mapping[str, np.ndarray], name: str, dtype: str, shape: tuple[int, ...]
) -> np.ndarray:
    """``tensors[name]`` if it has the given dtype and shape; -1 in ``shape`` matches any extent."""
    array = tensors.get(name)
    if array is None:
        raise FileFormatError(f"{path} lacks the array '{name}': make the file again with shplb.")
    fits = array.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
    if array.dtype != np.dtype(dtype) or not fits:
        raise FileFormatError(
            f"{path}: array '{name}' is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}; "
            "make the file again with shplb."
        )
    return array
