# SPDX-License-Identifier: Apache-2.0
"""The type stub of the extension says what the extension has: names, properties, parameters and defaults."""

import ast
import inspect
from pathlib import Path

import pytest

import shplb
from shplb import _core

STUB = Path(shplb.__file__).with_name("_core.pyi")
TREE = ast.parse(STUB.read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
CONSTANTS = {
    node.target.id: node.annotation for node in TREE.body
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
}  # fmt: skip
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}


def public(namespace) -> set[str]:
    return {name for name in namespace if not name.startswith("_")}


def stub_parameters(node: ast.FunctionDef) -> list[tuple[str, bool, bool]]:
    """(name, keyword only, has a default) without self."""
    arguments = node.args
    positional = [a.arg for a in arguments.args if a.arg != "self"]
    with_default = set(positional[len(positional) - len(arguments.defaults) :] if arguments.defaults else [])
    result = [(name, False, name in with_default) for name in positional]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        result.append((argument.arg, True, default is not None))
    return result


def module_parameters(doc: str) -> list[tuple[str, bool, bool]]:
    """The same from pybind11's signature line."""
    signature = doc.splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    tree = ast.parse(f"def f({strip_annotations(inside)}): ...").body[0]
    assert isinstance(tree, ast.FunctionDef)
    return stub_parameters(tree)


def strip_annotations(parameters: str) -> str:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(parameters + ","):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(parameters[start:index].strip())
            start = index + 1
    names = []
    for part in filter(None, parts):
        name = part.split(":")[0].split("=")[0].strip()
        names.append(f"{name}=0" if "=" in part else name)
    return ", ".join(names)


def test_same_public_names():
    assert public(vars(_core)) == set(CLASSES) | set(FUNCTIONS) | set(CONSTANTS)


def test_constants():
    assert {name: ast.unparse(annotation) for name, annotation in CONSTANTS.items()} == {
        name: type(getattr(_core, name)).__name__ for name in CONSTANTS
    }


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions(name):
    assert module_parameters(getattr(_core, name).__doc__) == stub_parameters(FUNCTIONS[name])


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"InvalidArgument", "Infeasible"}))
def test_classes(name):
    members = {node.name: node for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}
    real = getattr(_core, name)
    assert public(vars(real)) == public(members)
    for member, node in members.items():
        is_property = any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        assert isinstance(inspect.getattr_static(real, member), property) == is_property
        if not is_property:
            assert module_parameters(getattr(real, member).__doc__) == stub_parameters(node)


def test_exceptions():
    assert issubclass(_core.InvalidArgument, ValueError)
    assert issubclass(_core.Infeasible, RuntimeError)


def test_package_exports_what_it_names():
    assert all(hasattr(shplb, name) for name in shplb.__all__)
