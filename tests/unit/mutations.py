# SPDX-License-Identifier: Apache-2.0
"""Damaged and forged profile and plan files, made of good ones by seeded random numbers."""

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from shplb.container import METADATA_KEY, content_hash

#: What may stand in a JSON field that does not belong there; long numbers are beyond 64 bits.
ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x",
    "a\nb", "\ud800", "\x1b[31m", "../../etc/passwd", "__import__('os').system('false')", "x" * 5000, [], {}, [[]],
    [1] * 100, {"a": {}}, ["x"], [None],
]  # fmt: skip
ODD_DTYPES = ("int64", "int32", "uint8", "float32", "float64", "float16", "bool", "uint64")
ODD_NUMBERS = (0, 1, -1, 2, float("nan"), float("inf"), -float("inf"), 1e30, 2**62, -(2**62), 1e-30)


class Mutator:
    """Mutations of one good file, of two kinds: of its bytes, and of its content under a checksum that fits again."""

    def __init__(self, data: bytes, seed: int) -> None:
        self.data = data
        self.random = random.Random(seed)
        self.header = 8 + struct.unpack("<Q", data[:8])[0]
        self.tensors = load(data)
        self.facts = json.loads(json.loads(data[8 : self.header])["__metadata__"][METADATA_KEY])

    def next(self) -> bytes:
        kinds = (self._flip, self._cut, self._length, self._splice, self._raw_header, self._forge, self._forge)
        made: Callable[[], bytes] = self.random.choice(kinds)
        return made()

    def _flip(self) -> bytes:
        data = bytearray(self.data)
        for _ in range(self.random.choice((1, 1, 2, 8))):
            position = self.random.randrange(len(data) if self.random.random() < 0.5 else self.header)
            data[position] ^= self.random.randrange(1, 256)
        return bytes(data)

    def _cut(self) -> bytes:
        size = self.random.randrange(len(self.data))
        return self.data[:size] + self.random.randbytes(self.random.choice((0, 0, 1, 100)))

    def _length(self) -> bytes:
        """Another length of the header."""
        near = self.header - 8 + self.random.randrange(-20, 20)
        length = self.random.choice((0, 1, near, len(self.data), 2**31, 2**32, 2**63 - 1, 2**64 - 1))
        return struct.pack("<Q", length) + self.data[8:]

    def _splice(self) -> bytes:
        """A piece taken out, doubled or moved."""
        a, b = sorted(self.random.randrange(len(self.data)) for _ in range(2))
        b = min(b, a + 64)
        at = self.random.randrange(len(self.data))
        rest = self.data[:a] + self.data[b:] if self.random.random() < 0.7 else self.data
        return rest if self.random.random() < 0.4 else rest[:at] + self.data[a:b] + rest[at:]

    def _raw_header(self) -> bytes:
        """Well-formed JSON in the header that says something else about the arrays."""
        header = json.loads(self.data[8 : self.header])
        self._edit(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.data[self.header :]

    def _forge(self) -> bytes:
        """Other facts or arrays, under a checksum that fits."""
        facts, tensors = copy.deepcopy(self.facts), dict(self.tensors)
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            if self.random.random() < 0.5:
                self._edit(facts)
            else:
                self._edit_arrays(tensors)
        facts["content_hash"] = content_hash(tensors, facts)
        arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        return save(arrays, metadata={METADATA_KEY: json.dumps(facts)})

    def _edit(self, tree: Any) -> None:
        """Change, remove or add one value somewhere in a JSON tree."""
        while True:
            keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            if not keys:
                return
            key = self.random.choice(keys)
            if not isinstance(tree[key], dict | list) or self.random.random() < 0.3:
                break
            tree = tree[key]
        kind = self.random.randrange(4)
        if kind == 0:
            del tree[key]
        elif kind == 1 and isinstance(tree[key], int | float):
            tree[key] = tree[key] * self.random.choice((-1, 0, 2, 1000, 10**12)) + self.random.choice((0, 1, -1))
        elif kind == 2 and isinstance(tree, dict):
            tree[self.random.choice(("", "kind", "format_version", "__class__", "x"))] = self.random.choice(ODD_VALUES)
        else:
            tree[key] = self.random.choice(ODD_VALUES)

    def _edit_arrays(self, tensors: dict[str, np.ndarray]) -> None:
        """Another shape, dtype or value of one array, or none of it."""
        if not tensors:
            return
        name = self.random.choice(sorted(tensors))
        array, kind = tensors[name], self.random.randrange(6)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            with np.errstate(all="ignore"):
                tensors[name] = array.astype(self.random.choice(ODD_DTYPES))
        elif kind == 2:
            tensors[name] = array[..., : self.random.randrange(array.shape[-1] + 1)] if array.ndim else array
        elif kind == 3:
            tensors[name] = array.reshape(self.random.choice(((-1,), (1, -1), (*array.shape, 1))))
        else:
            copied = array.copy().reshape(-1)
            for _ in range(min(len(copied), self.random.choice((1, 1, 5)))):
                with np.errstate(all="ignore"):
                    copied[self.random.randrange(len(copied))] = np.array(self.random.choice(ODD_NUMBERS)).astype(
                        array.dtype
                    )
            tensors[name] = copied.reshape(array.shape)
