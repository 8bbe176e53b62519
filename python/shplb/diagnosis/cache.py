# SPDX-License-Identifier: Apache-2.0
"""Plans made at earlier starts, which a server without ``--shplb-plan`` takes."""

import os
from pathlib import Path

from shplb.container import FileFormatError
from shplb.diagnosis.finding import Finding
from shplb.plan import ServingPlan
from shplb.sglang.active_plan import cache_dir

_SHOWN = 8  # the rest is counted: all findings should fit one screen


def check_cache() -> list[Finding]:
    """The newest cached plans with model and TP size, and whether the folder can be written."""
    folder = cache_dir()
    present = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    if not present.is_dir() or not os.access(present, os.W_OK):
        fix = "set SHPLB_CACHE_DIR to a folder that can be"
        return [Finding("cache", "problem", f"{folder} can't be written", fix)]
    plans = sorted((folder / "plans").glob("*.plan.safetensors"), key=lambda path: -path.stat().st_mtime)
    summary = f"{len(plans)} plan{'' if len(plans) == 1 else 's'} in {folder}"
    if len(plans) > _SHOWN:
        summary += f", the newest {_SHOWN}:"
    return [Finding("cache", "ok", summary), *(_describe(path) for path in plans[:_SHOWN])]


def _describe(path: Path) -> Finding:
    try:
        plan = ServingPlan.load(path)
    except FileFormatError:
        return Finding("cache", "note", f"{path.name} can't be used and is made again at the next start")
    model = plan.model
    shape = f"{model.num_layers} layers, {model.num_qo_heads}/{model.num_kv_heads} heads, hidden {model.hidden_size}"
    return Finding("cache", "ok", f"--tp {plan.tp_size}, density {plan.density:g}: {model.architecture}, {shape}")
