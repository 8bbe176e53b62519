# SPDX-License-Identifier: Apache-2.0
"""Published schemas are those of the code, and hold what files hold; files of older versions load."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from synthetic import assert_same, make_profile, make_serving_plan, make_shape

from shplb import plan, profile
from shplb.container import METADATA_KEY, load_container, save_container
from shplb.file_schemas import schemas
from shplb.plan import ServingPlan
from shplb.profile import HeadProfile
from shplb.row_sampling import RowSampling

DOCS = Path(__file__).parents[2] / "docs"
DATA = Path(__file__).parent / "data"


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as stream:
        return dict(json.loads(stream.metadata()[METADATA_KEY]))


def test_published_schemas_are_those_of_the_code() -> None:
    for name, schema in schemas().items():
        assert json.loads((DOCS / "schemas" / name).read_text()) == json.loads(json.dumps(schema)), (
            "run python -m shplb.file_schemas"
        )
        assert f"schemas/{name}" in (DOCS / "files.md").read_text()


@pytest.mark.parametrize("kind", [profile.KIND, plan.KIND])
def test_files_hold_what_the_schema_says(tmp_path: Path, kind: str) -> None:
    made = make_profile() if kind == profile.KIND else make_serving_plan()
    made.save(tmp_path / "file")
    schema = next(schema for name, schema in schemas().items() if name.startswith(kind))
    facts = metadata(tmp_path / "file")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(facts, schema)
    assert set(schema["properties"]) == set(facts)
    for name in schema["required"]:
        with pytest.raises(jsonschema.ValidationError, match=f"'{name}' is a required property"):
            jsonschema.validate({key: value for key, value in facts.items() if key != name}, schema)
    tensors, _ = load_container(tmp_path / "file", kind, facts["format_version"])
    forms = schema["x-arrays"] | schema["x-optional-arrays"]
    assert {name: array.dtype.name for name, array in tensors.items()} == {name: forms[name]["dtype"] for name in forms}


def test_files_written_by_version_1() -> None:
    """Both were written by the code of version 1, with the generators of these tests."""
    shape = make_shape(layers=2, kv_heads=2, group=2)
    assert metadata(DATA / "HeadProfile.v1.safetensors")["format_version"] == 1
    assert_same(HeadProfile.load(DATA / "HeadProfile.v1.safetensors"), make_profile(shape))
    written = msgspec.structs.replace(make_serving_plan(shape), recovery=np.empty(0))  # came later, and may lack
    assert_same(ServingPlan.load(DATA / "ServingPlan.v1.safetensors"), written)


def test_profile_without_importance_migrates(tmp_path: Path) -> None:
    """The first files of version 1 held neither importance nor row sampling."""
    tensors, facts = load_container(DATA / "HeadProfile.v1.safetensors", profile.KIND, 1)
    old = {name: facts[name] for name in facts if name not in ("importance_method", "row_sampling")}
    save_container(tmp_path / "old", profile.KIND, 1, {k: v for k, v in tensors.items() if k != "importance"}, old)
    loaded = HeadProfile.load(tmp_path / "old")
    assert (loaded.importance_method, loaded.row_sampling) == ("", None)
    np.testing.assert_array_equal(loaded.importance, np.ones((2, 4)))


def test_migration_keeps_what_is_there(tmp_path: Path) -> None:
    tensors, facts = load_container(DATA / "HeadProfile.v1.safetensors", profile.KIND, 1)
    tensors["importance"] = np.array([[0.5, 1.5, 1.0, 1.0]] * 2)
    kept = facts | {"importance_method": "fisher", "row_sampling": {"every": 4, "seed": 9}}
    save_container(tmp_path / "old", profile.KIND, 1, tensors, kept)
    loaded = HeadProfile.load(tmp_path / "old")
    assert (loaded.importance_method, loaded.row_sampling) == ("fisher", RowSampling(4, 9))
    np.testing.assert_array_equal(loaded.importance, tensors["importance"])
