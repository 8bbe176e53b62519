# SPDX-License-Identifier: Apache-2.0
"""SGLang features that S-HPLB does not serve, each with the flag to drop; checked before weights load."""

from collections.abc import Callable
from typing import Any

from shplb.plan import ServingPlan
from shplb.sglang.refusal import StartRefusedError
from shplb.sparsity import PAGE_SIZE
from shplb.step_memory import StepMemory

Test = Callable[[Any], object]

_MOST_SCORE_BYTES = 2 << 30

_LORA = "LoRA"  # its A and B matrices are not placed with the heads


# Plain attribute access: a field that a new SGLang renames must fail loudly, not count as "off".
def _not(name: str, *allowed: object) -> Test:
    return lambda args: getattr(args, name) not in allowed


def _above(name: str, limit: int) -> Test:
    return lambda args: (getattr(args, name) or 0) > limit


def _set(name: str) -> Test:
    return lambda args: bool(getattr(args, name))


def _full_prefill_graph(args: Any) -> bool:
    # Inside one graph of the whole prefill no host code runs, so nothing could select pages.
    config = args.cuda_graph_config
    prefill = config.get("prefill", {}) if isinstance(config, dict) else getattr(config, "prefill", None)
    backend = prefill.get("backend") if isinstance(prefill, dict) else getattr(prefill, "backend", None)
    return "full" in (backend, args.cuda_graph_backend_prefill)


# (test on ServerArgs, what is on, what to do). Order: the most likely mistakes first.
_UNSUPPORTED: tuple[tuple[Test, str, str], ...] = (
    (_above("dp_size", 1), "data parallelism (--dp-size > 1)", "start one server per replica"),
    (_set("enable_dp_attention"), "DP attention", "drop --enable-dp-attention"),
    (_above("attn_cp_size", 1), "context parallelism", "drop --attn-cp-size"),
    (_set("enable_prefill_cp"), "prefill context parallelism", "drop --enable-prefill-cp"),
    (_set("enable_prefill_context_parallel"), "prefill context parallelism", "drop --enable-prefill-context-parallel"),
    (_set("enable_dsa_prefill_context_parallel"), "prefill context parallelism",
     "drop --enable-dsa-prefill-context-parallel"),
    (_above("dcp_size", 1), "decode context parallelism", "drop --dcp-size"),
    (_above("pp_size", 1), "pipeline parallelism", "drop --pp-size"),
    (_set("speculative_algorithm"), "speculative decoding", "drop --speculative-algorithm"),
    (_set("enable_hierarchical_cache"), "HiCache", "drop --enable-hierarchical-cache"),
    (_set("enable_lmcache"), "LMCache", "drop --enable-lmcache"),
    (_set("radix_cache_backend"), "another radix cache", "drop --radix-cache-backend"),
    (_set("enable_hisparse"), "HiSparse", "drop --enable-hisparse"),
    (_not("disaggregation_mode", "null"), "prefill-decode disaggregation", "drop --disaggregation-mode"),
    (_set("encoder_only"), "encoder disaggregation", "drop --encoder-only"),
    (_set("language_only"), "encoder disaggregation", "drop --language-only"),
    (_set("enable_lora"), _LORA, "drop --enable-lora"),
    (_set("lora_paths"), _LORA, "drop --lora-paths"),
    (_set("enable_two_batch_overlap"), "two-batch overlap", "drop --enable-two-batch-overlap"),
    (_set("enable_single_batch_overlap"), "single-batch overlap", "drop --enable-single-batch-overlap"),
    (_set("enable_pdmux"), "PD multiplexing", "drop --enable-pdmux"),
    (_set("enable_mis"), "multi-item scoring", "drop --enable-mis"),
    (_set("dllm_algorithm"), "diffusion LLM inference", "drop --dllm-algorithm"),
    (_set("enable_deterministic_inference"), "deterministic inference", "drop --enable-deterministic-inference"),
    (_set("rl_on_policy_target"), "deterministic inference (--rl-on-policy-target)", "drop --rl-on-policy-target"),
    (_set("enable_torch_compile"), "torch.compile of the model", "drop --enable-torch-compile"),
    (_full_prefill_graph, "a full prefill CUDA graph", "use --cuda-graph-backend-prefill breakable"),
    (_set("enable_page_major_kv_layout"), "the page-major KV layout", "drop --enable-page-major-kv-layout"),
    (_set("enable_unified_memory"), "the unified memory pool", "drop --enable-unified-memory"),
    (_set("prefill_only_disable_kv_cache"), "prefill without a KV cache", "drop --prefill-only-disable-kv-cache"),
    (_not("kv_cache_dtype", "auto", "bf16", "bfloat16"), "a quantised KV cache", "use --kv-cache-dtype auto"),
    (_set("is_embedding"), "embedding models", "drop --is-embedding"),
    (_not("model_impl", "auto", "sglang"), "a model implementation other than SGLang's own",
     "use --model-impl sglang"),
)  # fmt: skip

# Loaders that hand over whole float tensors by name; others shard, pack or narrow first, or bypass load_weights.
_STREAMING_LOAD_FORMATS = (
    "auto", "pt", "safetensors", "npcache", "dummy", "local_cached", "fastsafetensors", "runai_streamer",
)  # fmt: skip


def check_features(args: Any) -> None:
    """Refuse features that S-HPLB does not serve; StartRefusedError in one sentence.

    Called on ``ServerArgs`` as given, so that our sentence comes before any assertion of SGLang about its own
    combinations, and again as resolved, since some features switch others on.
    """
    for test, what, advice in _UNSUPPORTED:
        if test(args):
            raise StartRefusedError(f"{what} is not supported with --enable-shplb; {advice} or --enable-shplb.")


def check_kv_cache(args: Any, config: dict[str, Any]) -> None:
    """Refuse a checkpoint whose own config asks for a quantised KV cache, which "auto" would follow."""
    quantization = config.get("quantization_config")
    scheme = quantization.get("kv_cache_scheme") if isinstance(quantization, dict) else None
    if scheme and args.kv_cache_dtype == "auto":
        raise StartRefusedError(
            "the checkpoint asks for a quantised KV cache, which is not supported with --enable-shplb; "
            "give --kv-cache-dtype bf16."
        )


def check_page_size(args: Any) -> None:
    """Refuse page and chunk sizes of a resolved ``ServerArgs`` that do not fit pages of the plan."""
    allowed = (PAGE_SIZE,) if args.device != "cpu" else (1, PAGE_SIZE)
    if args.page_size not in allowed:
        raise StartRefusedError(
            f"--page-size is {args.page_size}, S-HPLB keeps pages of {PAGE_SIZE} tokens; use --page-size {PAGE_SIZE}."
        )
    if args.chunked_prefill_size and args.chunked_prefill_size > 0 and args.chunked_prefill_size % PAGE_SIZE:
        raise StartRefusedError(
            f"--chunked-prefill-size is {args.chunked_prefill_size}, expected a multiple of {PAGE_SIZE} tokens."
        )


def check_selection_memory(args: Any, plan: ServingPlan) -> None:
    """Refuse chunks whose page scores would take GPU memory that nobody set aside: float32, one per (query head that a
    rank holds, query block of the chunk, page of the context)."""
    if args.device == "cpu":
        return
    context = int(args.context_length or args.get_model_config().context_len)
    chunk = args.chunked_prefill_size if args.chunked_prefill_size and args.chunked_prefill_size > 0 else context
    needed, block = StepMemory.of(plan, chunk, context).scores, plan.rule.query_block
    if needed <= _MOST_SCORE_BYTES:
        return
    most = _MOST_SCORE_BYTES // StepMemory.of(plan, block, context).scores * block // PAGE_SIZE * PAGE_SIZE
    raise StartRefusedError(
        f"prefill of {chunk} tokens at once on a context of {context} would need {needed / 2**30:.1f} GiB of GPU "
        f"memory to select pages; use --chunked-prefill-size {most} or less."
    )


def check_permutable(args: Any, config: dict[str, Any]) -> None:
    """Refuse checkpoints whose KV groups can't be permuted while they load; only for plans that permute."""
    # An enum when it comes from Engine(load_format=LoadFormat.GGUF).
    load_format = str(getattr(args.load_format, "value", args.load_format))
    if load_format not in _STREAMING_LOAD_FORMATS:
        raise StartRefusedError(
            f"--load-format {load_format} can't be combined with a plan that moves heads between ranks; "
            "use --load-format auto."
        )
    if args.custom_weight_loader:
        raise StartRefusedError(
            "this plan moves heads between ranks, which --custom-weight-loader would undo at weight updates; drop it."
        )
    quantization = args.quantization or (config.get("quantization_config") or {}).get("quant_method")
    if quantization:
        raise StartRefusedError(
            f"this plan moves heads between ranks, which is not supported for weights quantised by {quantization}; "
            "serve unquantised weights, or make a plan for --tp 1."
        )
