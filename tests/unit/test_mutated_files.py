# SPDX-License-Identifier: Apache-2.0
"""A hundred thousand damaged and forged files: each is refused in one sentence, or loads and can be used."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mutations import Mutator
from synthetic import make_profile, make_serving_plan, make_shape

from shplb.container import FileFormatError
from shplb.plan import ServingPlan
from shplb.profile import HeadProfile

COUNT = 50_000  # of each kind of file
_SMALL = make_shape(layers=2, kv_heads=2, group=2, inert=(1,))
_DATA = Path(__file__).parent / "data"

# What a loader has no business with: running or compiling code, unpickling, starting processes, writing.
_FORBIDDEN = {"exec", "compile", "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.remove",
              "os.rename", "os.mkdir", "shutil.move", "socket.connect", "ctypes.dlopen"}  # fmt: skip
_seen: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if event in _FORBIDDEN or writes:
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_audit)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What happens inside that must not (an audit hook can't be removed, so it stays, blind)."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


def use(loaded: HeadProfile | ServingPlan) -> None:
    """What the next command does first."""
    if isinstance(loaded, ServingPlan):
        assert loaded.budget_table(4096).pages.min() >= 0
        loaded.rank_loads(loaded.loads)
    else:
        loaded.mean_curves("error")


def outcome(path: Path, kind: type[HeadProfile] | type[ServingPlan]) -> str:
    """ "loaded", or the refusal, checked; any other exception passes through."""
    try:
        loaded = kind.load(path)
    except FileFormatError as error:
        text = str(error)
        assert text.startswith(str(path)), text
        assert text.endswith("."), text
        assert text.isprintable(), text
        assert len(text) < 600, text
        return "refused"
    use(loaded)
    return "loaded"


@pytest.mark.parametrize("kind", [HeadProfile, ServingPlan])
def test_mutated_files(tmp_path: Path, kind: type[HeadProfile] | type[ServingPlan]) -> None:
    path = tmp_path / "file"
    (make_profile(_SMALL) if kind is HeadProfile else make_serving_plan(_SMALL)).save(path)
    mutators = [Mutator(path.read_bytes(), seed=1)]
    if kind is HeadProfile:  # files that migrate
        mutators.append(Mutator((_DATA / "HeadProfile.v1.safetensors").read_bytes(), seed=2))
    assert outcome(path, kind) == "loaded"  # imports what it needs
    outcomes: Counter[str] = Counter()
    with warnings.catch_warnings(), path.open("r+b") as stream:
        warnings.simplefilter("ignore")  # numpy's, on numbers beyond float32
        for index in range(COUNT):
            data = mutators[index % len(mutators)].next()
            stream.seek(0)
            stream.write(data)
            stream.truncate()
            stream.flush()
            with watched() as seen:
                outcomes[outcome(path, kind)] += 1
            assert not seen
            assert index % 1000 or path.read_bytes() == data
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    # Some edits are harmless (a name, a new field), most are not.
    assert outcomes["loaded"] > COUNT // 100
    assert outcomes["refused"] > COUNT // 2
