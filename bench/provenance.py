# SPDX-License-Identifier: Apache-2.0
"""What every bench result says about where it comes from."""

import argparse
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance(args: argparse.Namespace) -> dict[str, Any]:
    """Command, arguments, versions, device and git revision of this run."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    # Folders differ from machine to machine and tell nothing.
    settings = {key: value.name if isinstance(value, Path) else value for key, value in vars(args).items()}
    return {
        "command": Path(sys.argv[0]).name,
        "arguments": settings,
        "versions": {name: version(name) for name in ("shplb", "sglang", "torch", "flashinfer-python", "numpy")},
        "python": platform.python_version(),
        "device": gpu or platform.machine(),
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()
