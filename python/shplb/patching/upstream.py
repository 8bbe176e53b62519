# SPDX-License-Identifier: Apache-2.0
"""The pinned SGLang: what `patches/UPSTREAM.toml` records, and the patch text beside it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from .refusal import PatchRefused

MANIFEST = "UPSTREAM.toml"
# Where the sglang package lies in the upstream repository; patch paths start with it, wheels have no such prefix.
PACKAGE_PREFIX = "python/sglang/"


@dataclass(frozen=True)
class PatchedFile:
    """One upstream file: its path inside the sglang package and its sha256 (hex) before and after."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Upstream:
    """The pin. `files` is in the order of the renames where a tree cannot be switched in one step."""

    url: str
    tag: str
    commit: str
    version: str
    files: tuple[PatchedFile, ...]
    patch_text: str

    @property
    def reinstall(self) -> str:
        """How to get back to a stock tree, for the end of an error sentence."""
        return (
            f"get the stock files back with `uv pip install --reinstall sglang=={self.version}` "
            f"(a checkout: git checkout {self.tag} -- python/sglang)"
        )


def patches_directory() -> Path:
    """`shplb/_patches` of an installed wheel, else `patches` of the repository this file lies in.

    Raises PatchRefused when neither is there.
    """
    here = Path(__file__).resolve()
    candidates = (here.parents[1] / "_patches", here.parents[3] / "patches")
    for candidate in candidates:
        if (candidate / MANIFEST).is_file():
            return candidate
    raise PatchRefused(
        f"no {MANIFEST} in {candidates[0]} or {candidates[1]}, expected the patches that ship with shplb: "
        f"reinstall shplb"
    )


def load_upstream(directory: Path | None = None) -> Upstream:
    """Reads the manifest and every `*.patch` of `directory` (default: `patches_directory()`), in name order.

    Raises PatchRefused when there is none, OSError or ValueError when it cannot be read.
    """
    directory = directory or patches_directory()
    manifest = tomllib.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    files = tuple(
        PatchedFile(entry["path"].removeprefix(PACKAGE_PREFIX), entry["before"], entry["after"])
        for entry in manifest["files"]
    )
    texts = [path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.patch"))]
    return Upstream(
        url=manifest["url"],
        tag=manifest["tag"],
        commit=manifest["commit"],
        version=manifest["version"],
        files=files,
        patch_text="".join(texts),
    )
