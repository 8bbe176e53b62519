# SPDX-License-Identifier: Apache-2.0
"""Make a HeadProfile of a model: choose texts, run them through SGLang, put the ranks' curves together."""

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from shplb.assembly import mean_arrays, mean_residual, measured_sampling, read_sums
from shplb.container import FileFormatError
from shplb.errors import CalibrationError, CalibrationTimeoutError
from shplb.importance import fisher_importance, measure_sensitivity
from shplb.locking import locked
from shplb.model import ModelShape, context_length, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.processes import ManagedProcess
from shplb.profile import DENSITIES, HeadProfile
from shplb.recording import MEASUREMENT_VERSION, ProfileJob, ProfileRequest
from shplb.row_sampling import MOST_SPARSE
from shplb.sglang.cpu import cpu_environment
from shplb.sparsity import SparsityRule, query_block_size
from shplb.texts import Document, calibration_documents, documents_hash, user_documents

# Where a config names no context length; no model reads more.
_MOST_TOKENS = 1 << 24


class ProfileSettings(msgspec.Struct, frozen=True):
    """How to profile: context lengths (ascending, in tokens), ranks, device, dtype and attention backend as for SGLang
    ("" is its own choice), one query row in ``row_sampling`` chosen by ``seed``.
    """

    lengths: tuple[int, ...]
    tp_size: int = 1
    device: str = "cpu"
    dtype: str = "auto"
    row_sampling: int = MOST_SPARSE
    seed: int = 0
    attention_backend: str = ""


def default_lengths(longest: int) -> tuple[int, ...]:
    """1024, 2048, 4096, ... up to ``longest`` (always included)."""
    lengths = [1024]
    while lengths[-1] * 2 < longest:
        lengths.append(lengths[-1] * 2)
    return (*(length for length in lengths if length < longest), longest)


def check_request(model_dir: Path, out: Path, settings: ProfileSettings, *, limit: int) -> None:
    """Refuse what can't be profiled before anything slow begins; CalibrationError in one sentence."""
    config, lengths, tp_size = read_config(model_dir), settings.lengths, settings.tp_size
    model = ModelShape.from_config(config)
    if config.get("quantization_config") or config.get("compression_config"):
        raise CalibrationError(f"{model_dir} has quantised weights; profile and serve the unquantised model.")
    if out.is_dir():
        raise CalibrationError(f"--out {out} is a folder, expected the name of a file to write.")
    shortest = query_block_size(model.head_dim)
    if lengths[0] < shortest:
        raise CalibrationError(f"a length of {lengths[0]} tokens is too short, expected a query block of {shortest}.")
    if limit < 1:
        raise CalibrationError(f"--documents is {limit}, expected 1 or more.")
    if not 1 <= settings.row_sampling <= MOST_SPARSE:
        raise CalibrationError(
            f"--row-sampling is {settings.row_sampling}, expected 1 (every query row) to {MOST_SPARSE} "
            f"(one in {MOST_SPARSE})."
        )
    if tp_size < 1 or model.num_kv_heads % tp_size:
        raise CalibrationError(f"--tp is {tp_size}, expected a divisor of the model's {model.num_kv_heads} KV heads.")
    context = context_length(config) or _MOST_TOKENS
    if lengths[-1] > context:
        raise CalibrationError(f"a length of {lengths[-1]} tokens is beyond the model's context of {context}.")
    ends = range(shortest, lengths[-1] + shortest, shortest)
    for low, high in zip((lengths[0] // 2, *lengths), lengths, strict=False):
        if not any(max(low, high // 2) < min(end, lengths[-1]) <= high for end in ends):
            raise CalibrationError(f"no query block of {shortest} tokens ends in ({low}, {high}]; drop one length.")
    if settings.device not in ("cuda", "cpu"):
        raise CalibrationError(f"--device is {settings.device}, expected cuda or cpu.")


def load_tokenizer(model_dir: Path) -> Any:
    """The Hugging Face tokenizer of a model folder; CalibrationError in one sentence when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_dir)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CalibrationError(f"the tokenizer of {model_dir} can't be loaded ({reason}); put it there.") from None


def choose_documents(model_dir: Path, num_tokens: int, *, texts: Path | None, limit: int) -> list[Document]:
    """Calibration documents of ``num_tokens`` tokens: the user's texts, or the shipped mix."""
    tokenizer = load_tokenizer(model_dir)
    if texts is not None:
        return user_documents(texts, num_tokens, tokenizer)[:limit]
    return calibration_documents(num_tokens, tokenizer, limit=limit)


def profile_model(
    model_dir: Path,
    documents: list[Document],
    out: Path,
    settings: ProfileSettings,
    *,
    importance_documents: Sequence[Document] = (),
    on_document: Callable[[str], None] = lambda name: None,
    on_importance: Callable[[str], None] = lambda name: None,
) -> HeadProfile:
    """Measure the head curves of a model and save them as ``out``.

    A folder beside ``out`` holds finished documents until then; a second call with the same arguments goes on where a
    first one was stopped, and waits where one is still running. ``on_document`` and ``on_importance`` are called with
    the name of each document when it is done. Where rows are sampled, the first document is also measured on all rows,
    and the profile says how far apart the two are. Where there are ``importance_documents``, the importance of heads is
    then measured on them through transformers (see ``importance``).
    """
    model = ModelShape.from_config(read_config(model_dir))
    rule = SparsityRule(query_block=query_block_size(model.head_dim))
    names = {f"document{index:03d}": document for index, document in enumerate(documents)}
    request = _request(tuple(names), rule, settings)
    digest, identity = documents_hash(documents), fingerprint(model_dir)
    # What is measured names the folder, so that work left by another run can't slip into this one.
    how = settings.tp_size, settings.dtype, settings.device, settings.attention_backend, MEASUREMENT_VERSION
    key = hashlib.sha256(f"{identity}{digest}{request}{how}".encode()).hexdigest()
    folder = out.parent / f".{out.name}.work" / key[:20]
    with locked(folder.parent / f"{folder.name}.lock"):
        request.save(folder)
        job = ProfileJob(
            str(model_dir), settings.tp_size, settings.device, settings.dtype, settings.attention_backend, {}
        )
        _record(folder, names, job, on_document)
        titles = tuple(document.name for document in documents)
        sums = read_sums(folder, request, settings.tp_size)
        rows, error, recovery = mean_arrays(sums)
        weights, method = _importance(model_dir, model, importance_documents, rule, folder, settings, on_importance)
        profile = HeadProfile(
            model=model,
            fingerprint=identity,
            rule=rule,
            documents=titles,
            documents_hash=digest,
            versions={package: version(package) for package in ("shplb", "sglang", "torch")},
            lengths=np.array(settings.lengths, dtype=np.int64),
            densities=np.array(DENSITIES),
            rows=rows,
            error=error,
            recovery=recovery,
            importance=weights,
            importance_method=method,
            residual=mean_residual(sums),
            row_sampling=measured_sampling(folder, request, settings.tp_size, sums[0], model, titles[0]),
        )
        profile.save(out)
        shutil.rmtree(folder)
    return profile


def _request(documents: tuple[str, ...], rule: SparsityRule, settings: ProfileSettings) -> ProfileRequest:
    return ProfileRequest(
        documents=documents,
        lengths=settings.lengths,
        rule=rule,
        row_sampling=settings.row_sampling,
        seed=settings.seed,
        exact_document=documents[0] if settings.row_sampling > 1 else "",
    )


def _importance(
    model_dir: Path,
    model: ModelShape,
    documents: Sequence[Document],
    rule: SparsityRule,
    folder: Path,
    settings: ProfileSettings,
    on_document: Callable[[str], None],
) -> tuple[np.ndarray, str]:
    """(importance, its method) for a HeadProfile; (all ones, "") without documents."""
    if not documents:
        return np.ones((model.num_layers, model.num_qo_heads)), ""
    kept = folder / f"importance-{documents_hash(documents)[:12]}"
    found = measure_sensitivity(
        model_dir,
        documents,
        rule,
        device=settings.device,
        seed=settings.seed,
        folder=kept,
        on_document=on_document,
    )
    method = f"fisher, {len(documents)} documents of {len(documents[0].token_ids)} tokens, seed {settings.seed}"
    return fisher_importance(found, model), method


def _record(folder: Path, names: dict[str, Document], job: ProfileJob, on_document: Callable[[str], None]) -> None:
    """Run the worker for the documents that are not done yet, and report each as it is."""
    for name in names:
        if job.is_done(folder, name):
            on_document(names[name].name)
    missing = {name: names[name].token_ids for name in names if not job.is_done(folder, name)}
    if not missing:
        return
    msgspec.structs.replace(job, documents=missing).save(folder)
    waiting = list(missing)
    log = folder.with_name(folder.name + ".log")
    command = [sys.executable, "-m", "shplb.sglang.profile_worker", str(folder)]
    env = cpu_environment(job.tp_size) if job.device == "cpu" else {}
    # SGLang answers SIGTERM by finishing what is queued; here nothing of that is wanted.
    with ManagedProcess(command, log=log, env=env, grace_s=1.0) as worker:
        while waiting:
            ended = worker.returncode is not None
            for name in [name for name in waiting if job.is_done(folder, name)]:
                waiting.remove(name)
                on_document(names[name].name)
            if ended and waiting:
                raise CalibrationError(worker.with_log(f"SGLang ended before {names[waiting[0]].name} was profiled"))
            time.sleep(0.2)


def calibrate(
    model_dir: Path,
    *,
    tp_size: int,
    density: float,
    plan_path: Path,
    device: str,
    dtype: str,
    attention_backend: str,
    max_tokens: int,
    timeout_s: float,
) -> None:
    """Profile and plan in processes of their own, so that the server that waits for the plan starts clean.

    Several servers that start on one model at once make it once.

    Raises:
        CalibrationError: one of the two commands failed; its own message is on stderr.
        CalibrationTimeoutError: they take longer than ``timeout_s``, from when no other server makes the same plan.
    """
    profile_path = plan_path.with_name(plan_path.name.split("-tp")[0] + ".profile.safetensors")
    make_profile = ["profile", "--model-path", str(model_dir), "--out", str(profile_path), "--device", device]
    make_profile += ["--tp", str(tp_size), "--dtype", dtype, "--max-tokens", str(max_tokens)]
    make_profile += ["--attention-backend", attention_backend] if attention_backend else []
    make_plan = ["plan", str(profile_path), "--tp", str(tp_size), "--density", str(density), "--out", str(plan_path)]
    with locked(plan_path.with_name(f".{profile_path.name}.lock")):
        deadline = time.monotonic() + timeout_s
        if not is_readable(HeadProfile, profile_path):
            _run(make_profile, deadline)
        if not is_readable(ServingPlan, plan_path):
            _run(make_plan, deadline)


def is_readable(kind: type[HeadProfile] | type[ServingPlan], path: Path) -> bool:
    """Whether ``path`` holds a file that this release can use; a cached one that it can't is made again."""
    try:
        kind.load(path)
    except FileFormatError:
        return False
    return True


def _run(arguments: list[str], deadline: float) -> None:
    command = f"`shplb {' '.join(arguments)}`"
    with ManagedProcess([sys.executable, "-m", "shplb", *arguments], log=None) as child:
        try:
            failed = child.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            raise CalibrationTimeoutError(f"{command} was not done in time.") from None
        if failed:
            raise CalibrationError(f"{command} failed; see its message above, or give --shplb-plan.")
