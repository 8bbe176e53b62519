# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas of what profile and plan files hold, made from the types that read them.

    python -m shplb.file_schemas docs/schemas

writes the files; a test holds them to the code. A schema describes the metadata (safetensors' ``__metadata__.shplb``),
and lists the arrays under ``x-arrays``, which JSON Schema has no words for.
"""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from shplb import plan, profile
from shplb.container import ArrayForm, write_atomically

_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON Schema (2020-12) of the present version of each kind of file."""
    kinds: list[tuple[str, int, type, Mapping[str, ArrayForm], Mapping[str, ArrayForm]]] = [
        (profile.KIND, profile.FORMAT_VERSION, profile.ProfileFacts, profile.ARRAYS, profile.OPTIONAL_ARRAYS),
        (plan.KIND, plan.FORMAT_VERSION, plan.PlanFacts, plan.ARRAYS, plan.OPTIONAL_ARRAYS),
    ]
    return {
        f"{kind}.v{version}.schema.json": _schema(kind, version, facts, arrays, optional)
        for kind, version, facts, arrays, optional in kinds
    }


def _schema(
    kind: str, version: int, facts: type, arrays: Mapping[str, ArrayForm], optional: Mapping[str, ArrayForm]
) -> dict[str, Any]:
    _, definitions = msgspec.json.schema_components([facts], ref_template="#/$defs/{name}")
    held = definitions.pop(facts.__name__)
    for definition in definitions.values():
        definition["description"] = inspect.cleandoc(definition["description"])
    own = {"kind": {"const": kind}, "format_version": {"const": version}, "content_hash": _SHA256}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{kind}, format version {version}",
        "type": "object",
        "properties": own | held["properties"],
        "required": [*own, *held["required"]],
        "$defs": definitions,
        "x-arrays": _listed(arrays),
        "x-optional-arrays": _listed(optional),
    }


def _listed(arrays: Mapping[str, ArrayForm]) -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in arrays.items()}


def write(folder: Path) -> None:
    for name, schema in schemas().items():
        write_atomically(folder / name, json.dumps(schema, indent=1).encode() + b"\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
