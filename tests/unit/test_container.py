# SPDX-License-Identifier: Apache-2.0
"""The file container: what was saved is loaded, anything else is refused in one sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import is_one_sentence

from shplb.container import (
    MOST_BYTES,
    MOST_HEADER_BYTES,
    FileFormatError,
    content_hash,
    load_container,
    require_array,
    save_container,
)

TENSORS = {
    "a": np.arange(12, dtype=np.int64).reshape(3, 4),
    "b": np.linspace(0, 1, 5, dtype=np.float32),
    "empty": np.zeros((0, 2)),
}
FACTS = {"text": 'ünïcode "quotes"', "nested": {"x": [1, 2.5, None]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.file"
    save_container(path, "Kind", 3, TENSORS, FACTS)
    return path


def refusal(path: Path, kind: str = "Kind", version: int = 3) -> str:
    with pytest.raises(FileFormatError) as caught:
        load_container(path, kind, version)
    assert is_one_sentence(caught.value), caught.value
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_round_trip(file: Path) -> None:
    tensors, facts = load_container(file, "Kind", 3)
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)
    assert {key: facts[key] for key in FACTS} == FACTS


def test_equal_content_gives_equal_bytes_and_hash(tmp_path: Path, file: Path) -> None:
    turned = {name: np.asfortranarray(TENSORS[name]) for name in reversed(TENSORS)}
    digest = save_container(tmp_path / "again", "Kind", 3, turned, dict(reversed(FACTS.items())))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert load_container(file, "Kind", 3)[1]["content_hash"] == digest


@pytest.mark.parametrize(
    "changed",
    [
        {"a": TENSORS["a"] + 1},
        {"a": TENSORS["a"].reshape(4, 3)},
        {"a": TENSORS["a"].view(np.uint64)},
        {"c": TENSORS["a"]},
    ],
)
def test_hash_tells_content_apart(changed: dict[str, np.ndarray]) -> None:
    assert content_hash(TENSORS | changed, FACTS) != content_hash(TENSORS, FACTS)
    assert content_hash(TENSORS, FACTS | {"text": ""}) != content_hash(TENSORS, FACTS)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path / "nothing")
    assert "not a file" in refusal(tmp_path)


def test_truncated_at_every_byte(file: Path) -> None:
    data = file.read_bytes()
    for size in range(len(data)):
        file.write_bytes(data[:size])
        refusal(file)


def test_one_more_byte(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    refusal(file)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_any_flipped_byte(file: Path, mask: int) -> None:
    data = file.read_bytes()
    for position in range(len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        refusal(file)


def test_wrong_kind(file: Path) -> None:
    message = refusal(file, kind="Other")
    assert "is a Kind" in message
    assert "Other is needed" in message


def test_other_versions(file: Path) -> None:
    assert "update shplb" in refusal(file, version=2)
    assert "make it again" in refusal(file, version=4)


def test_older_versions_migrate_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "old"
    save_container(path, "Kind", 1, TENSORS, FACTS)
    before = path.read_bytes()
    steps = {1: lambda tensors, facts: facts.update(two=len(tensors)), 2: lambda _, facts: facts.update(three=True)}
    _, facts = load_container(path, "Kind", 3, steps)
    assert (facts["two"], facts["three"]) == (len(TENSORS), True)
    assert path.read_bytes() == before
    with pytest.raises(FileFormatError, match="format version 1, this shplb reads 3: make it again"):
        load_container(path, "Kind", 3, {2: steps[2]})


def test_damage_is_found_before_migration(tmp_path: Path) -> None:
    path = tmp_path / "old"
    save_container(path, "Kind", 1, TENSORS, FACTS)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FileFormatError, match="checksum"):
        load_container(path, "Kind", 2, {1: lambda *_: pytest.fail("a damaged file was migrated")})


def test_too_large_to_be_read(file: Path) -> None:
    data = file.read_bytes()
    os.truncate(file, MOST_BYTES + 1)  # a sparse file
    assert f"{MOST_BYTES + 1} bytes, expected a Kind of at most {MOST_BYTES}" in refusal(file)
    file.write_bytes((MOST_HEADER_BYTES + 1).to_bytes(8, "little") + data + bytes(MOST_HEADER_BYTES))
    assert f"a header of {MOST_HEADER_BYTES + 1} bytes" in refusal(file)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(3)}, path)
    assert "safetensors file but not a Kind" in refusal(path)
    save_file({"x": np.zeros(3)}, path, metadata={"format": "pt"})
    assert "safetensors file but not a Kind" in refusal(path)


def test_dtypes_that_numpy_lacks(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "model.safetensors"
    for metadata in (None, {"shplb": "{}"}):
        save_torch({"x": torch.zeros(2, dtype=torch.bfloat16)}, path, metadata=metadata)
        refusal(path)


@pytest.mark.parametrize(
    "metadata",
    [
        "no JSON",
        "[]",
        "{}",
        '{"kind": "Kind"}',
        '{"kind": "Kind", "format_version": 3}',
        '{"kind": "Kind", "format_version": NaN}',
        '{"kind": "Kind", "format_version": true}',
        '{"kind": "two\\nlines"}',
    ],
)
def test_foreign_metadata(tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(3)}, path, metadata={"shplb": metadata})
    refusal(path)


def test_arrays_of_another_form(file: Path) -> None:
    tensors, _ = load_container(file, "Kind", 3)
    assert require_array(file, tensors, "a", "int64", (-1, 4)) is tensors["a"]
    for name, dtype, shape in [
        ("z", "int64", (3, 4)),
        ("a", "int32", (3, 4)),
        ("a", "int64", (4, 3)),
        ("a", "int64", (12,)),
    ]:
        with pytest.raises(FileFormatError) as caught:
            require_array(file, tensors, name, dtype, shape)
        assert is_one_sentence(caught.value)
        assert f"'{name}'" in str(caught.value)


def test_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = file.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_container(file, "Kind", 4, {}, {})
    assert file.read_bytes() == old
    assert [path.name for path in file.parent.iterdir()] == [file.name]


_WRITE_SLOWLY = """
import os, sys, time
from pathlib import Path
import numpy as np
import shplb.container
shplb.container.os.fsync = lambda handle: (print("half", flush=True), time.sleep(60))
shplb.container.save_container(Path(sys.argv[1]), "Kind", 4, {"x": np.zeros(10)}, {})
"""


def test_killed_write_leaves_the_old_file(file: Path) -> None:
    old = file.read_bytes()
    with subprocess.Popen([sys.executable, "-c", _WRITE_SLOWLY, str(file)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.send_signal(signal.SIGKILL)
    assert file.read_bytes() == old


def test_replacing_is_seen_whole(file: Path) -> None:
    """A reader that polls while a writer replaces the file never meets half of one."""
    code = (
        "import sys; from pathlib import Path; import numpy as np; from shplb.container import save_container\n"
        "for i in range(150): save_container(Path(sys.argv[1]), 'Kind', 3, {'x': np.full(5000, i)}, {})"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(file)]) as writer:
        while writer.poll() is None:
            load_container(file, "Kind", 3)
            time.sleep(0.001)
    assert writer.returncode == 0
    assert load_container(file, "Kind", 3)[0]["x"][0] == 149


def test_mode_follows_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_container(tmp_path / "file", "Kind", 1, {}, {})
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
