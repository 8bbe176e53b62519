# SPDX-License-Identifier: Apache-2.0
"""What the patched ``ServerArgs.__post_init__`` calls: defaults before SGLang resolves them, checks after."""

import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shplb.density_advice import ADVICE
from shplb.errors import CalibrationTimeoutError, UserError
from shplb.model import Fingerprint
from shplb.plan import ServingPlan
from shplb.recording import ProfileRequest
from shplb.sglang import SGLANG_VERSION
from shplb.sglang.active_plan import (
    cached_plan_path,
    check_plan,
    drop_grown_heads,
    grow_heads,
    identify,
    load_plan,
    local_model_dir,
)
from shplb.sglang.checkpoint import check_checkpoint
from shplb.sglang.environment import CALIBRATION_S, Environment
from shplb.sglang.features import (
    check_features,
    check_kv_cache,
    check_page_size,
    check_permutable,
    check_selection_memory,
)
from shplb.sglang.plugin import require_found
from shplb.sglang.refusal import StartRefusedError
from shplb.shares import parse_share
from shplb.sparsity import PAGE_SIZE

logger = logging.getLogger(__name__)

_CALIBRATION_TOKENS = 8192
# Load formats that read the safetensors files in the model's folder where there are some.
_FROM_FILES = ("auto", "safetensors")
# What may be wrapped, by device; the first is what we take on a CPU and advise elsewhere.
_BASE_BACKENDS = {"cpu": ("torch_native",), "cuda": ("flashinfer", "fa3")}


def resolve_defaults(args: Any) -> None:
    """Choose the page size, and on a CPU the base backend to wrap, before SGLang fills in its own defaults.

    The name stays that of the base backend, so that all of SGLang's decisions by backend name keep working. Where
    nothing says how much attention to compute, S-HPLB is off, with a warning.
    """
    if args.shplb_plan is None and args.shplb_density is None and args.shplb_profile is None:
        _serve_stock(args, f"give --shplb-plan or --shplb-density ({ADVICE}).")
        return
    check_features(args)
    if args.device not in _BASE_BACKENDS:
        raise StartRefusedError(f"--device is {args.device}, S-HPLB runs on cuda and cpu; use one of them.")
    bases = _BASE_BACKENDS[args.device]
    for flag in ("attention_backend", "prefill_attention_backend"):
        name = getattr(args, flag)
        if name is not None and name not in bases:
            raise StartRefusedError(
                f"--{flag.replace('_', '-')} is {name}, S-HPLB wraps {' or '.join(bases)} on {args.device}; "
                f"drop the flag or use --{flag.replace('_', '-')} {bases[0]}."
            )
    if args.device == "cpu" and args.attention_backend is None:
        args.attention_backend = bases[0]  # on CUDA, SGLang's own choice stays: decoding is not ours
    if args.page_size is None:
        args.page_size = PAGE_SIZE
    if args.shplb_profile is not None and args.cuda_graph_backend_prefill is None and args.cuda_graph_config is None:
        # Profiling measures on the side of every layer; capture would run it on dummy batches.
        args.cuda_graph_backend_prefill = "disabled"
    if args.device == "cpu" and args.page_size > 1:
        # SGLang's allocator of pages is a Triton kernel; ranks are spawned, so they see this before they import it.
        os.environ["TRITON_INTERPRET"] = "1"


def _serve_stock(args: Any, why: str) -> None:
    """Switch S-HPLB off; no flag of it is left, since copies of these arguments are checked again."""
    logger.warning("S-HPLB: serving without it: %s", why)
    args.enable_shplb, args.shplb_density, args.shplb_trace = False, None, None


def check_supported(args: Any) -> None:
    """Refuse, in one sentence each and before any weight loads, what S-HPLB can't serve."""
    if not args.enable_shplb:
        raise StartRefusedError("--shplb-* flags were given without --enable-shplb; add --enable-shplb or drop them.")
    _check_version()
    require_found()
    Environment.read()
    check_features(args)
    _check_base_backend(args)
    check_page_size(args)
    drop_grown_heads(args)
    shape, identity, config = identify(args)
    check_kv_cache(args, config)
    if args.tp_size > shape.num_kv_heads or shape.num_kv_heads % args.tp_size:
        raise StartRefusedError(
            f"{shape.num_kv_heads} KV heads can't be split over --tp {args.tp_size} in equal counts; choose a divisor "
            "of the KV heads, or pad the model with `shplb pad`."
        )
    if args.shplb_profile is not None:
        _check_profiling(args, config)
        return
    _check_trace_folder(args.shplb_trace)
    if not _choose_plan(args, identity):
        return
    # A second engine in this process may come after the file was made again.
    load_plan.cache_clear()
    plan = load_plan(args.shplb_plan)
    check_plan(plan, args.shplb_plan, shape, identity, args.tp_size)
    check_selection_memory(args, plan)
    if plan.permutes:
        check_permutable(args, config)
        folder = local_model_dir(args.model_path, args.revision)
        if folder is not None and args.load_format in _FROM_FILES:
            check_checkpoint(folder, plan)
    if plan.replicas:
        grow_heads(args, plan.served_heads)


def _check_base_backend(args: Any) -> None:
    """Refuse what SGLang chose where the user gave nothing, if it can't be wrapped."""
    bases = _BASE_BACKENDS[args.device]
    chosen = args.prefill_attention_backend or args.attention_backend
    if chosen not in bases:
        raise StartRefusedError(
            f"SGLang takes the attention backend {chosen} here, S-HPLB wraps {' or '.join(bases)} on {args.device}; "
            f"add --attention-backend {bases[0]}."
        )
    from sglang.srt.environ import envs

    if args.device == "cuda" and envs.SGLANG_USE_HND_KVCACHE.get():
        raise StartRefusedError("SGLANG_USE_HND_KVCACHE changes the layout of the KV pool; unset it.")


def _check_version() -> None:
    try:
        found = version("sglang")
    except PackageNotFoundError:
        found = "unknown"
    if found != SGLANG_VERSION:
        raise StartRefusedError(f"SGLang {found} is installed, the patch is for {SGLANG_VERSION}; install that one.")


def _check_profiling(args: Any, config: dict[str, Any]) -> None:
    if args.shplb_plan is not None:
        raise StartRefusedError("--shplb-profile records dense attention, so it can't follow --shplb-plan; drop one.")
    if args.quantization or config.get("quantization_config"):
        raise StartRefusedError(
            "profiling reads o_proj weights, which are quantised here; profile and serve the unquantised model."
        )
    if not ProfileRequest.is_in(Path(args.shplb_profile)):
        raise StartRefusedError(
            f"--shplb-profile {args.shplb_profile} holds no profiling request; profile with `shplb profile`."
        )


def _check_trace_folder(folder: str | None) -> None:
    if folder is None:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise StartRefusedError(f"--shplb-trace {folder} can't be written to; give another folder.")


def _choose_plan(args: Any, identity: Fingerprint) -> bool:
    """Set ``args.shplb_plan``: the file given, else the cached plan of this model, made first where there is none.

    False where making one takes too long: then the server starts as stock, with a warning.

    Raises:
        StartRefusedError: the density is no share, a plan is given beside it, or the model can't be profiled.
    """
    if args.shplb_density is None:
        return True
    try:  # parsed by SGLang's command line, but not where Engine(...) was given it
        density = parse_share(args.shplb_density, "--shplb-density", "attention")
    except ValueError as error:
        raise StartRefusedError(f"{error}.") from None
    path = cached_plan_path(identity, args.tp_size, density)
    if args.shplb_plan is not None:
        # Equal to the cached one where SGLang copies arguments that were resolved before.
        if args.shplb_plan != str(path):
            raise StartRefusedError("--shplb-density has no effect on --shplb-plan, which holds its own; drop one.")
        return True
    try:
        _make_plan(args, density, path)
    except CalibrationTimeoutError as error:
        _serve_stock(args, f"{error} The next start goes on from there; {CALIBRATION_S} gives it more seconds.")
        return False
    args.shplb_plan = str(path)
    return True


def _make_plan(args: Any, density: float, path: Path) -> None:
    """Calibrate into ``path`` unless it holds a usable plan."""
    from shplb.calibration import calibrate, is_readable

    if is_readable(ServingPlan, path):
        return
    # The child that profiles would need each of these, too.
    model = args.model_path
    plain = {"nnodes": (1,), "base_gpu_id": (0,), "trust_remote_code": (False,), "tokenizer_path": (None, model)}
    for name, values in plain.items():
        if getattr(args, name) not in values:
            raise StartRefusedError(
                f"a model can't be profiled at start with --{name.replace('_', '-')}; make a plan with `shplb profile` "
                "and `shplb plan`, and give --shplb-plan."
            )
    folder = local_model_dir(args.model_path, args.revision)
    if folder is None:
        raise StartRefusedError(
            f"{args.model_path} can't be profiled before it is on this disk; download it first, or give --shplb-plan."
        )
    context = int(args.context_length or args.get_model_config().context_len)
    try:
        calibrate(
            folder,
            tp_size=args.tp_size,
            density=density,
            plan_path=path,
            device=args.device,
            dtype=args.dtype,
            attention_backend=args.prefill_attention_backend or args.attention_backend or "",
            max_tokens=min(_CALIBRATION_TOKENS, context // 2),
            timeout_s=Environment.read().calibration_s,
        )
    except CalibrationTimeoutError:
        raise
    except UserError as error:
        raise StartRefusedError(str(error)) from None
