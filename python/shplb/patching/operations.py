# SPDX-License-Identifier: Apache-2.0
"""Apply, check and revert: the three things done with the patch."""

from dataclasses import dataclass
from pathlib import Path

from .lock import tree_lock
from .refusal import PatchRefused
from .rewriting import rewritten_files
from .transaction import needs_repair, repair, switch_files
from .tree import State, Tree, check_version, locate_tree, tree_state
from .upstream import Upstream, load_upstream


@dataclass(frozen=True)
class Outcome:
    """What a run found and did: `switch` is "exchange", "journal", or "none" when there was nothing to change."""

    package: Path
    state: State
    switch: str
    fault: str = ""


def apply(target: Path | None = None) -> Outcome:
    """Patches SGLang; does nothing to a patched one.

    `target`: root of a source checkout or a sglang package directory; None is the SGLang of the running interpreter.
    Raises PatchRefused, with nothing written, for a missing SGLang, another version, a modified file, a tree that
    cannot be written, or one that another run is patching.
    """
    return _move(target, State.APPLIED)


def revert(target: Path | None = None) -> Outcome:
    """Gives the stock tree back, byte for byte; does nothing to a stock one. Arguments and errors as `apply`."""
    return _move(target, State.NOT_APPLIED)


def check(target: Path | None = None) -> Outcome:
    """State of the tree; writes only to finish a run that was killed.

    Raises PatchRefused for a missing SGLang or another version; a modified file is a state here, told in `fault`.
    """
    upstream, tree = _opened(target)
    paths = [file.path for file in upstream.files]
    if needs_repair(tree.package, paths):
        with tree_lock(tree.package):
            repair(tree.package, paths)
    state, fault = tree_state(tree, upstream)
    return Outcome(tree.package, state, "none", fault)


def _opened(target: Path | None) -> tuple[Upstream, Tree]:
    upstream = load_upstream()
    tree = locate_tree(target, upstream)
    check_version(tree, upstream)
    return upstream, tree


def _move(target: Path | None, wanted: State) -> Outcome:
    upstream, tree = _opened(target)
    paths = [file.path for file in upstream.files]
    # An unneeded run writes nothing, so it also works on a read-only tree.
    if not needs_repair(tree.package, paths) and tree_state(tree, upstream)[0] is wanted:
        return Outcome(tree.package, wanted, "none")
    with tree_lock(tree.package):
        repair(tree.package, paths)
        state, fault = tree_state(tree, upstream)
        if state is wanted:
            return Outcome(tree.package, wanted, "none")
        if state is State.MODIFIED:
            raise PatchRefused(fault)
        contents = rewritten_files(tree.package, upstream, reverse=wanted is State.NOT_APPLIED)
        switch = switch_files(tree.package, contents)
    return Outcome(tree.package, wanted, switch)
