# SPDX-License-Identifier: Apache-2.0
"""The text of the upstream files on the other side of the patch."""

import hashlib
from pathlib import Path

import whatthepatch  # type: ignore[import-untyped]

from .refusal import PatchRefused
from .upstream import PACKAGE_PREFIX, Upstream


def rewritten_files(package: Path, upstream: Upstream, reverse: bool) -> dict[str, bytes]:
    """Path inside the package -> content after the patch; with `reverse`: before it.

    The order is that of `files`, reversed with `reverse`: a tree with only some of the files switched then always lacks
    the flags of server_args.py, and so behaves as stock. Expects a tree in the opposite state.
    Raises PatchRefused when a result does not have its recorded sha256.
    """
    contents = {}
    for file in reversed(upstream.files) if reverse else upstream.files:
        content = _rewritten(package / file.path, _diffs(upstream, file.path), reverse)
        wanted = file.before if reverse else file.after
        if hashlib.sha256(content).hexdigest() != wanted:
            raise PatchRefused(
                f"the patch gives another {file.path} than recorded, expected sha256 {wanted[:12]}: reinstall shplb"
            )
        contents[file.path] = content
    return contents


def _diffs(upstream: Upstream, path: str) -> list[object]:
    wanted = PACKAGE_PREFIX + path
    diffs = [diff for diff in whatthepatch.parse_patch(upstream.patch_text) if diff.header and diff.changes]
    return [diff for diff in diffs if diff.header.new_path == wanted or diff.header.new_path == "b/" + wanted]


def _rewritten(path: Path, diffs: list[object], reverse: bool) -> bytes:
    # Split at "\n" only: splitlines() also splits at form feeds and Unicode line ends inside string literals,
    # and would lose the end of the last line.
    lines = path.read_bytes().decode("utf-8").split("\n")
    for diff in reversed(diffs) if reverse else diffs:
        try:
            lines = whatthepatch.apply_diff(diff, lines, reverse=reverse)
        except whatthepatch.exceptions.HunkApplyException as error:
            raise PatchRefused(
                f"the patch does not fit {path} ({error}), expected the pinned text: reinstall shplb"
            ) from error
    return "\n".join(lines).encode("utf-8")
