# SPDX-License-Identifier: Apache-2.0
"""Installed versions against the pins of ``patches/UPSTREAM.toml`` and of the package, from metadata alone."""

import platform
import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from shplb.diagnosis.finding import Finding
from shplb.patching.upstream import MANIFEST, patches_directory

# What UPSTREAM.toml names: distribution on PyPI.
_DISTRIBUTIONS = {"flashinfer": "flashinfer-python", "torch": "torch"}


def check_versions() -> list[Finding]:
    """Python, shplb and what it depends on, SGLang, torch, FlashInfer."""
    try:
        needed_python = metadata("shplb")["Requires-Python"]
        found = version("shplb")
    except PackageNotFoundError:
        return [Finding("shplb", "problem", "is not installed as a package", "install it with `pip install .`")]
    upstream = tomllib.loads((patches_directory() / MANIFEST).read_text(encoding="utf-8"))
    findings = [_python(needed_python), _dependencies(found), _package("sglang", "sglang", upstream["version"])]
    findings += [_package(name, _DISTRIBUTIONS.get(name, name), pin) for name, pin in upstream["with"].items()]
    return findings


def _python(needed: str | None) -> Finding:
    found = platform.python_version()
    pinned = re.fullmatch(r"==(\d+\.\d+)\.\*", needed or "")
    if pinned and not found.startswith(f"{pinned[1]}."):
        fix = f"make an environment with Python {pinned[1]}"
        return Finding("Python", "problem", f"{found}, expected {pinned[1]}", fix)
    return Finding("Python", "ok", found)


def _dependencies(shplb: str) -> Finding:
    wrong = []
    for line in requires("shplb") or []:
        pin = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line)  # lines with "; extra ==" are not for everyone
        if pin and installed(pin[1]) != pin[2]:
            wrong.append((pin[1], pin[2]))
    if wrong:
        found = ", ".join(f"{name} {installed(name) or 'missing'}" for name, _ in wrong)
        pins = " ".join(f"{name}=={pin}" for name, pin in wrong)
        return Finding(
            "shplb", "problem", f"{shplb}, but {found}", f"install what it is tested with: pip install {pins}"
        )
    return Finding("shplb", "ok", f"{shplb}, its dependencies as pinned")


def _package(name: str, distribution: str, pin: str) -> Finding:
    found, fix = installed(distribution), f"install it with `pip install {distribution}=={pin}`"
    if found is None:
        return Finding(name, "problem", f"not installed, expected {pin}", fix)
    if found.split("+")[0] != pin:  # +cu130 and the like name a build
        return Finding(name, "problem", f"{found}, expected {pin}", fix)
    return Finding(name, "ok", found)


def installed(distribution: str) -> str | None:
    """Version of a distribution; None when there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
