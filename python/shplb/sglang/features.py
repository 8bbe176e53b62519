# SPDX-License-Identifier: Apache-2.0
"""SGLang features that S-HPLB does not serve, each with the flag to drop; checked before weights load."""

from collections.abc import Callable
from typing import Any

from shplb.sglang.refusal import StartRefusedError
from shplb.sparsity import PAGE_SIZE

Test = Callable[[Any], object]


def _is(name: str, *values: object) -> Test:
    return lambda args: getattr(args, name, None) in values


def _above(name: str, limit: int) -> Test:
    return lambda args: (getattr(args, name, None) or 0) > limit


def _set(name: str) -> Test:
    return lambda args: bool(getattr(args, name, None))


# (test on ServerArgs, what is on, what to do). Order: the most likely mistakes first.
_UNSUPPORTED: tuple[tuple[Test, str, str], ...] = (
    (_above("dp_size", 1), "data parallelism (--dp-size > 1)", "start one server per replica"),
    (_set("enable_dp_attention"), "DP attention", "drop --enable-dp-attention"),
    (_above("attn_cp_size", 1), "context parallelism", "drop the context-parallel size"),
    (_set("enable_prefill_cp"), "prefill context parallelism", "drop --enable-prefill-cp"),
    (_above("dcp_size", 1), "decode context parallelism", "drop --dcp-size"),
    (_above("pp_size", 1), "pipeline parallelism", "drop --pp-size"),
    (_set("speculative_algorithm"), "speculative decoding", "drop --speculative-algorithm"),
    (_set("enable_hierarchical_cache"), "HiCache", "drop --enable-hierarchical-cache"),
    (_set("enable_hisparse"), "HiSparse", "drop --enable-hisparse"),
    (lambda args: getattr(args, "disaggregation_mode", "null") != "null", "prefill-decode disaggregation",
     "drop --disaggregation-mode"),
    (_set("enable_lora"), "LoRA", "drop --enable-lora"),
    (_set("lora_paths"), "LoRA", "drop --lora-paths"),
    (_set("enable_two_batch_overlap"), "two-batch overlap", "drop --enable-two-batch-overlap"),
    (_set("enable_single_batch_overlap"), "single-batch overlap", "drop --enable-single-batch-overlap"),
    (_set("enable_pdmux"), "PD multiplexing", "drop --enable-pdmux"),
    (_set("enable_mis"), "multi-item scoring", "drop --enable-mis"),
    (_set("multi_item_scoring_delimiter"), "multi-item scoring", "drop --multi-item-scoring-delimiter"),
    (_set("dllm_algorithm"), "diffusion LLM inference", "drop --dllm-algorithm"),
    (_set("enable_deterministic_inference"), "deterministic inference", "drop --enable-deterministic-inference"),
    (_set("enable_torch_compile"), "torch.compile of the model", "drop --enable-torch-compile"),
    (_set("enable_page_major_kv_layout"), "the page-major KV layout", "drop --enable-page-major-kv-layout"),
    (_set("enable_unified_memory"), "the unified memory pool", "drop --enable-unified-memory"),
    (_is("kv_cache_dtype", "fp4_e2m1"), "an fp4 KV cache", "use --kv-cache-dtype auto"),
    (_is("is_embedding", True), "embedding models", "drop --is-embedding"),
)  # fmt: skip

# Loaders that hand over tensors which are already sharded, packed or narrowed, so that KV groups can't be permuted.
_OPAQUE_LOAD_FORMATS = ("sharded_state", "remote", "remote_instance", "bitsandbytes", "gguf", "flash_rl", "rdma")


def check_features(args: Any) -> None:
    """Refuse unsupported features of a resolved ``ServerArgs``; StartRefusedError in one sentence."""
    for test, what, advice in _UNSUPPORTED:
        if test(args):
            raise StartRefusedError(f"{what} is not supported with --enable-shplb; {advice} or --enable-shplb.")
    allowed = (PAGE_SIZE,) if args.device != "cpu" else (1, PAGE_SIZE)
    if args.page_size not in allowed:
        raise StartRefusedError(
            f"--page-size is {args.page_size}, S-HPLB keeps pages of {PAGE_SIZE} tokens; use --page-size {PAGE_SIZE}."
        )
    if args.chunked_prefill_size and args.chunked_prefill_size > 0 and args.chunked_prefill_size % PAGE_SIZE:
        raise StartRefusedError(
            f"--chunked-prefill-size is {args.chunked_prefill_size}, expected a multiple of {PAGE_SIZE} tokens."
        )


def check_permutable(args: Any, config: dict[str, Any]) -> None:
    """Refuse checkpoints whose KV groups can't be permuted while they load; only for plans that permute."""
    load_format = str(getattr(args, "load_format", "auto"))
    if load_format in _OPAQUE_LOAD_FORMATS:
        raise StartRefusedError(
            f"--load-format {load_format} can't be combined with a plan that moves heads between ranks; "
            "use --load-format auto."
        )
    quantization = args.quantization or (config.get("quantization_config") or {}).get("quant_method")
    if quantization:
        raise StartRefusedError(
            f"this plan moves heads between ranks, which is not supported for weights quantised by {quantization}; "
            "serve unquantised weights, or make a plan for --tp 1."
        )
