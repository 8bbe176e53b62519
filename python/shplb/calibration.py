# SPDX-License-Identifier: Apache-2.0
"""Make a HeadProfile of a model: choose texts, run them through SGLang, put the ranks' curves together."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shplb.container import FileFormatError
from shplb.model import ModelShape, fingerprint, read_config
from shplb.profile import DENSITIES, HeadProfile
from shplb.recording import CurveSums, ProfileRequest
from shplb.sparsity import SparsityRule, query_block_size
from shplb.texts import Document, calibration_documents, documents_hash, user_documents


class CalibrationError(RuntimeError):
    """A profile that can't be made; the message is one sentence."""


def default_lengths(longest: int) -> tuple[int, ...]:
    """1024, 2048, 4096, ... up to ``longest`` (always included)."""
    lengths = [1024]
    while lengths[-1] * 2 < longest:
        lengths.append(lengths[-1] * 2)
    return (*(length for length in lengths if length < longest), longest)


def choose_documents(
    model_dir: Path, num_tokens: int, *, texts: Path | None, limit: int
) -> list[Document]:
    """Calibration documents of ``num_tokens`` tokens: the user's texts, or the shipped mix."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    if texts is not None:
        return user_documents(texts, num_tokens, tokenizer)[:limit]
    return calibration_documents(num_tokens, tokenizer, limit=limit)


def profile_model(
    model_dir: Path,
    documents: list[Document],
    work_dir: Path,
    *,
    lengths: tuple[int, ...],
    tp_size: int = 1,
    device: str = "cpu",
    dtype: str = "auto",
    on_document: Callable[[str], None] = lambda name: None,
) -> HeadProfile:
    """Measure the head curves of a model.

    ``work_dir`` holds finished documents; a second call with the same documents and lengths goes on where a first
    one was stopped. ``on_document`` is called with the name of each document when it is done.
    """
    config = read_config(model_dir)
    model = ModelShape.from_config(config)
    rule = SparsityRule(query_block=query_block_size(model.head_dim))
    names = {f"document{index:03d}": document for index, document in enumerate(documents)}
    request = ProfileRequest(documents=tuple(names), lengths=lengths, rule=rule)
    digest = documents_hash(documents)
    folder = work_dir / f"{digest[:16]}-{'-'.join(map(str, lengths))}-tp{tp_size}"
    request.save(folder)
    missing = {}
    for name, document in names.items():
        if (folder / f"{name}.done").exists():
            on_document(document.name)
        else:
            missing[name] = document.token_ids
    if missing:
        from shplb.sglang.engine import profile_documents

        for name in profile_documents(str(model_dir), missing, folder, tp_size=tp_size, device=device, dtype=dtype):
            (folder / f"{name}.done").touch()
            on_document(names[name].name)
    profile = _assemble(folder, names, request, tp_size, model, model_dir, digest)
    shutil.rmtree(folder)
    return profile


def _assemble(
    folder: Path,
    names: dict[str, Document],
    request: ProfileRequest,
    tp_size: int,
    model: ModelShape,
    model_dir: Path,
    digest: str,
) -> HeadProfile:
    recovery, error, rows = [], [], []
    for name in names:
        try:
            parts = [CurveSums.load(folder, name, rank) for rank in range(tp_size)]
        except FileFormatError as reason:
            raise CalibrationError(f"no curves of {name} were recorded ({reason}); profile again.") from None
        counts = parts[0].rows[0]
        scale = 1.0 / np.maximum(counts, 1)[None, None, :, None]
        recovery.append(np.concatenate([part.recovery for part in parts], axis=1) * scale)
        error.append(np.concatenate([part.error for part in parts], axis=1) * scale)
        rows.append(counts)
    return HeadProfile(
        model=model,
        fingerprint=fingerprint(model_dir),
        rule=request.rule,
        documents=tuple(document.name for document in names.values()),
        documents_hash=digest,
        versions={package: version(package) for package in ("shplb", "sglang", "torch")},
        lengths=np.array(request.lengths, dtype=np.int64),
        densities=np.array(DENSITIES),
        rows=np.array(rows, dtype=np.int64),
        error=np.array(error, dtype=np.float32),
        recovery=np.clip(np.array(recovery, dtype=np.float32), 0.0, 1.0),
    )


def calibrate(model_path: str, *, tp_size: int, density: float, plan_path: Path, device: str) -> None:
    """Profile and plan in processes of their own, so that the server that waits for the plan starts clean.

    Raises:
        CalibrationError: one of the two commands failed; its own message is on stderr.
    """
    profile_path = plan_path.with_name(plan_path.name.split("-tp")[0] + ".profile.safetensors")
    command = [sys.executable, "-m", "shplb"]
    steps = [
        [*command, "plan", str(profile_path), "--tp", str(tp_size), "--density", str(density), "--out", str(plan_path)]
    ]
    if not profile_path.is_file():
        profile = ["profile", "--model-path", model_path, "--out", str(profile_path), "--device", device]
        steps.insert(0, [*command, *profile])
    for step in steps:
        if subprocess.run(step, check=False).returncode:
            raise CalibrationError(f"`{' '.join(step[2:])}` failed; see its message above, or give --shplb-plan.")
