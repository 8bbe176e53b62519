# SPDX-License-Identifier: Apache-2.0
"""Arrays and facts in one file on disk: safetensors with JSON metadata, versioned, checksummed, written atomically.

HeadProfile and ServingPlan share it, so that a damaged, truncated, foreign or future file gives the same clear
sentence everywhere. No pickle: reading an untrusted file can't run code. The rule for versions is in docs/files.md.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

METADATA_KEY = "shplb"

#: Larger files are refused unread. A profile of 80 layers, 64 heads, 24 documents and 8 lengths has 94 MB.
MOST_BYTES = 1 << 30
#: Of the safetensors header, which holds the metadata.
MOST_HEADER_BYTES = 1 << 23

#: Turns what a file of one version holds into what the next version would, in place.
Migration = Callable[[dict[str, np.ndarray], dict[str, Any]], None]
#: dtype and named extents of an array; a name stands for the same extent in all arrays of a file.
ArrayForm = tuple[str, tuple[str, ...]]


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


def load_container(
    path: Path, kind: str, version: int, migrations: Mapping[int, Migration] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a container written by :func:`save_container`.

    ``migrations[n]`` makes version ``n + 1`` of a file of version ``n``; the file itself stays as it is.

    Raises:
        FileFormatError: the file is missing, too large, truncated, damaged, of another kind, of a newer version, or
            of an older one from which no migrations lead here; the message says which and what to do.
    """
    raw, tensors = _read(path, kind)
    facts = _parse_facts(path, kind, raw)
    if facts.get("kind") != kind:
        raise FileFormatError(f"{path} is a {_printable(facts.get('kind'))}, but a {kind} is needed here.")
    steps = _steps(path, kind, facts.get("format_version"), version, migrations or {})
    if content_hash(tensors, facts) != facts.get("content_hash"):
        raise FileFormatError(f"{path} is damaged: its checksum does not match its content; make it again with shplb.")
    for migrate in steps:
        migrate(tensors, facts)
    return tensors, facts


def _steps(path: Path, kind: str, found: Any, wanted: int, migrations: Mapping[int, Migration]) -> list[Migration]:
    """The migrations from version ``found`` to ``wanted``, in order; FileFormatError where there is no such way."""
    known = isinstance(found, int) and not isinstance(found, bool)
    if known and found <= wanted and all(step in migrations for step in range(found, wanted)):
        return [migrations[step] for step in range(found, wanted)]
    advice = "update shplb to read it" if known and found > wanted else "make it again with this shplb"
    raise FileFormatError(f"{path} has {kind} format version {_printable(found)}, this shplb reads {wanted}: {advice}.")


def _read(path: Path, kind: str) -> tuple[str, dict[str, np.ndarray]]:
    try:
        if not path.is_file():
            raise FileFormatError(f"{path} is not a file: give the path of a {kind} made by shplb.")
        _check_sizes(path, kind)
        with safe_open(path, framework="numpy") as stream:
            raw = (stream.metadata() or {}).get(METADATA_KEY)
            if raw is None:
                raise FileFormatError(f"{path} is a safetensors file but not a {kind}: give a file made by shplb.")
            return raw, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
    except FileFormatError:
        raise
    # A TypeError or AttributeError stands for a dtype that numpy lacks, such as bfloat16 or float8.
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"{path} is damaged or not a {kind} ({_printable(error)}): make it again with shplb."
        ) from None


def _check_sizes(path: Path, kind: str) -> None:
    with path.open("rb") as stream:
        header, size = int.from_bytes(stream.read(8), "little"), os.fstat(stream.fileno()).st_size
    if size > MOST_BYTES:
        raise FileFormatError(f"{path} has {size} bytes, expected a {kind} of at most {MOST_BYTES}.")
    if header > min(size, MOST_HEADER_BYTES):
        raise FileFormatError(f"{path} is damaged or not a {kind} (a header of {header} bytes): make it again.")


def _parse_facts(path: Path, kind: str, raw: str) -> dict[str, Any]:
    try:
        facts = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise FileFormatError(f"{path} is damaged: its {kind} metadata is not JSON; make it again with shplb.")
    return facts


def take_facts[Facts](path: Path, kind: str, facts: Mapping[str, Any], form: type[Facts]) -> Facts:
    """Metadata as ``form``, a msgspec Struct; fields that it lacks are left out."""
    try:
        return msgspec.convert(facts, form)
    except msgspec.ValidationError as error:
        why = _printable(error).replace(". - at ", ", at ").replace(" - at ", " at ")
        raise FileFormatError(
            f"{path}: {kind} metadata is not valid ({why}); make the file again with shplb."
        ) from None


def take_arrays(
    path: Path, tensors: Mapping[str, np.ndarray], forms: Mapping[str, ArrayForm], extents: Mapping[str, int],
    optional: Mapping[str, ArrayForm] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The arrays that ``forms`` names, and those of ``optional`` that are there, checked; extents that are not given
    are those of the first array with them."""
    known = dict(extents)
    taken: dict[str, np.ndarray] = {}
    present = {name: form for name, form in (optional or {}).items() if name in tensors}
    for name, (dtype, shape) in {**forms, **present}.items():
        taken[name] = require_array(path, tensors, name, dtype, tuple(known.get(extent, -1) for extent in shape))
        known |= zip(shape, taken[name].shape, strict=True)
    return taken


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


def _printable(value: object) -> str:
    """What a file said, in a form that fits into a sentence: one short line without control characters."""
    text = str(value)
    short = text if len(text) <= 160 else f"{text[:160]}.."
    return short if short.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in short)
