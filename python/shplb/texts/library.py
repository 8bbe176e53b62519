# SPDX-License-Identifier: Apache-2.0
"""The shipped texts: a manifest and one compressed file per document."""

import hashlib
import lzma
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

Split = Literal["calibration", "held_out"]

# "retrieval" has no files of its own: its documents are prose with facts and a question added (retrieval.py).
DOMAINS = ("prose", "code", "manual", "dialogue", "retrieval")


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shipped text; sha256 is of the uncompressed UTF-8 bytes, characters their number as text."""

    name: str
    domain: str
    split: Split
    title: str
    licence: str
    file: str
    characters: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of ``data/manifest.json``."""

    version: Literal[1]
    documents: list[Source]


@cache
def sources() -> tuple[Source, ...]:
    """Return every shipped source, in a fixed order."""
    content = files("shplb.texts").joinpath("data", "manifest.json").read_bytes()
    return tuple(msgspec.json.decode(content, type=Manifest).documents)


def sources_of(split: Split, domain: str) -> tuple[Source, ...]:
    """Return the sources of one split and domain.

    Raises ValueError for an unknown split.
    """
    if split not in ("calibration", "held_out"):
        raise ValueError(f"split is {split!r}, expected 'calibration' or 'held_out'")
    return tuple(source for source in sources() if source.split == split and source.domain == domain)


@cache
def source_text(name: str) -> str:
    """Return the text of a shipped source by name.

    Raises ValueError for an unknown name and RuntimeError for a damaged file.
    """
    source = next((source for source in sources() if source.name == name), None)
    if source is None:
        raise ValueError(f"no shipped text is called {name!r}; there are {', '.join(s.name for s in sources())}")
    packed = files("shplb.texts").joinpath("data", source.file).read_bytes()
    try:
        content = lzma.decompress(packed)
    except lzma.LZMAError:
        content = b""
    # Budgets depend on these bytes, so a silently changed text must not pass.
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise RuntimeError(f"the shipped text {source.file} is damaged; install shplb again")
    return content.decode()
