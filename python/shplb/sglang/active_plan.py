# SPDX-License-Identifier: Apache-2.0
"""The plan that a server runs under: found or made once in the main process, loaded once in each rank."""

import contextlib
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from shplb.container import FileFormatError
from shplb.model import (
    IDENTITY_FIELDS,
    Fingerprint,
    ModelShape,
    UnsupportedModelError,
    config_hash,
    read_config,
    weights_hash,
)
from shplb.plan import ServingPlan
from shplb.rates import rates_name
from shplb.sglang.refusal import StartRefusedError

#: Key among the config overrides that names those which replicas need.
_OWN_OVERRIDE = "shplb_served_heads"
_PLAN_SUFFIX = ".plan.safetensors"


def cache_dir() -> Path:
    """Where profiles and plans made at start are kept: ``$SHPLB_CACHE_DIR``, else under ``$XDG_CACHE_HOME``."""
    if given := os.environ.get("SHPLB_CACHE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shplb"


def cached_plan_path(identity: Fingerprint, tp_size: int, density: float) -> Path:
    """Where the plan is kept that a first start with --shplb-density made."""
    return _plans_dir() / f"{_plan_stem(identity, tp_size)}{density!r}{_PLAN_SUFFIX}"


def cached_densities(identity: Fingerprint, tp_size: int) -> list[float]:
    """Densities at which such plans are there, ascending."""
    stem, found = _plan_stem(identity, tp_size), []
    for path in _plans_dir().glob(f"{stem}*{_PLAN_SUFFIX}"):
        with contextlib.suppress(ValueError):  # a file of another name is not ours
            found.append(float(path.name.removeprefix(stem).removesuffix(_PLAN_SUFFIX)))
    return sorted(found)


def _plans_dir() -> Path:
    return cache_dir() / "plans"


def _plan_stem(identity: Fingerprint, tp_size: int) -> str:
    key = hashlib.sha256(f"{identity.config}:{identity.weights}".encode()).hexdigest()[:20]
    return f"{key}-tp{tp_size}-d"


def rates_dir() -> Path:
    """Where `shplb calibrate` keeps rates, one file per kind of GPU and attention."""
    return cache_dir() / "rates"


def cached_rates_path(gpu: str, dtype: str, head_dim: int, group_size: int, base: str) -> Path:
    """Where `shplb calibrate` keeps the rates of this kind of GPU and attention."""
    return rates_dir() / rates_name(gpu, dtype, head_dim, group_size, base)


def local_model_dir(model_path: str, revision: str | None = None) -> Path | None:
    """The model's folder on this disk: the path itself or a downloaded hub snapshot; None when there is none yet."""
    if Path(model_path).is_dir():
        return Path(model_path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def model_config(args: Any) -> dict[str, Any]:
    """The Hugging Face config that SGLang itself would load, overrides included, as plain builtins."""
    config = args.get_model_config().hf_config.to_dict()
    return dict(config)


def identify(args: Any) -> tuple[ModelShape, Fingerprint, dict[str, Any]]:
    """Shape, fingerprint and config of the model that ``args`` would serve; StartRefusedError if unsupported."""
    folder = local_model_dir(args.model_path, args.revision)
    try:
        if folder is not None and (folder / "config.json").is_file():
            config = read_config(folder)
        else:
            config = model_config(args)
        refuse_overrides(args.json_model_override_args)
        shape = ModelShape.from_config(config)
    except UnsupportedModelError as error:
        raise StartRefusedError(str(error)) from None
    return shape, Fingerprint(config_hash(config), weights_hash(folder) if folder else ""), config


def grow_heads(args: Any, heads: dict[str, int]) -> None:
    """Let SGLang, in every process, build the model for ``heads`` (config fields) instead of its own.

    Through the overrides that ``args`` carries to the ranks; ``_OWN_OVERRIDE`` marks them as ours.
    """
    given = overrides_of(args.json_model_override_args)
    args.json_model_override_args = json.dumps({**given, **heads, _OWN_OVERRIDE: sorted(heads)})
    # Built before from the model's own config.
    vars(args).pop("model_config", None)


def drop_grown_heads(args: Any) -> None:
    """Undo :func:`grow_heads`, where SGLang resolves a copy of arguments that were resolved before."""
    given = overrides_of(args.json_model_override_args)
    ours = given.pop(_OWN_OVERRIDE, None)
    if ours is None:
        return
    args.json_model_override_args = json.dumps({key: value for key, value in given.items() if key not in ours})
    vars(args).pop("model_config", None)


def overrides_of(text: str | None) -> dict[str, Any]:
    """What --json-model-override-args holds; StartRefusedError where it is no JSON object."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StartRefusedError(f'--json-model-override-args is {text}, expected a JSON object such as {{"key": 1}}.')
    return found


def refuse_overrides(text: str | None) -> None:
    """StartRefusedError where overrides of the model's config change what a profile must know."""
    changed = sorted(set(overrides_of(text)) & set(IDENTITY_FIELDS))
    if changed:
        raise StartRefusedError(
            f"--json-model-override-args changes {', '.join(changed)}, which a profile must know; "
            "write it into the model's config.json instead."
        )


@functools.lru_cache(maxsize=4)
def load_plan(path: str) -> ServingPlan:
    """Read a plan file; StartRefusedError in one sentence when it can't be used."""
    try:
        return ServingPlan.load(Path(path))
    except FileFormatError as error:
        raise StartRefusedError(str(error)) from None


def check_plan(plan: ServingPlan, path: str, shape: ModelShape, identity: Fingerprint, tp_size: int) -> None:
    """Refuse a plan made for another model or another tensor-parallel size."""
    if plan.model != shape or plan.fingerprint.conflicts(identity):
        served = "same shape, other weights or rope settings" if plan.model == shape else _describe(shape)
        raise StartRefusedError(
            f"{path} was made for another model ({_describe(plan.model)}) than the one served ({served}); "
            "profile and plan this model, or give its own plan."
        )
    if plan.tp_size != tp_size:
        raise StartRefusedError(
            f"{path} was made for --tp {plan.tp_size}, the server has --tp {tp_size}; "
            f"make a plan with `shplb plan --tp {tp_size}` from the same profile."
        )


def _describe(shape: ModelShape) -> str:
    return (
        f"{shape.architecture}, {shape.num_layers} layers, {shape.num_qo_heads}/{shape.num_kv_heads} heads, "
        f"hidden size {shape.hidden_size}"
    )
