# SPDX-License-Identifier: Apache-2.0
"""Every SGLang feature that S-HPLB does not serve is refused on a real ServerArgs."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("sglang")

from server_arguments import CONFIG, refusal, server_args
from synthetic import is_one_sentence, make_serving_plan

from shplb.allocation import placed_order
from shplb.model import ModelShape
from shplb.sglang.features import check_selection_memory
from shplb.sglang.refusal import StartRefusedError

pytestmark = pytest.mark.usefixtures("server_environment")

_ON: list[dict[str, Any]] = [
    {"dp_size": 2}, {"enable_dp_attention": True}, {"attn_cp_size": 2}, {"enable_prefill_cp": True},
    {"enable_prefill_context_parallel": True}, {"enable_dsa_prefill_context_parallel": True}, {"dcp_size": 2},
    {"pp_size": 2}, {"speculative_algorithm": "NGRAM"}, {"speculative_algorithm": "EAGLE"},
    {"enable_hierarchical_cache": True}, {"enable_lmcache": True}, {"radix_cache_backend": "mine"},
    {"enable_hisparse": True}, {"disaggregation_mode": "prefill"}, {"disaggregation_mode": "decode"},
    {"encoder_only": True}, {"language_only": True}, {"enable_lora": True}, {"lora_paths": ["a=/b"]},
    {"enable_two_batch_overlap": True}, {"enable_single_batch_overlap": True}, {"enable_pdmux": True},
    {"enable_mis": True}, {"dllm_algorithm": "LowConfidence"}, {"enable_deterministic_inference": True},
    {"rl_on_policy_target": "fsdp"}, {"enable_torch_compile": True}, {"cuda_graph_backend_prefill": "full"},
    {"cuda_graph_config": {"prefill": {"backend": "full"}}}, {"enable_page_major_kv_layout": True},
    {"enable_unified_memory": True}, {"prefill_only_disable_kv_cache": True}, {"kv_cache_dtype": "fp8_e4m3"},
    {"kv_cache_dtype": "fp8_e5m2"}, {"kv_cache_dtype": "fp4_e2m1"}, {"is_embedding": True},
    {"model_impl": "transformers"},
]  # fmt: skip


@pytest.mark.parametrize("fields", _ON, ids=lambda fields: "-".join(map(str, *fields.items())))
def test_unsupported_features(llama: Path, llama_plan: str, fields: dict[str, Any]) -> None:
    assert "is not supported with --enable-shplb" in refusal(llama, shplb_plan=llama_plan, **fields)


def test_features_that_others_switch_on_are_refused(llama: Path, llama_plan: str) -> None:
    """Resolved arguments are checked again: a feature may come on after the first look."""
    from shplb.sglang.server_args import check_supported

    args = server_args(llama, shplb_plan=llama_plan)
    check_supported(args)
    args.cuda_graph_config.prefill.backend = "full"
    with pytest.raises(StartRefusedError, match="full prefill CUDA graph"):
        check_supported(args)
    args.cuda_graph_config.prefill.backend = "breakable"
    args.enable_deterministic_inference = True
    with pytest.raises(StartRefusedError, match="deterministic"):
        check_supported(args)


def test_every_row_is_tested_and_names_real_fields() -> None:
    """Each test of the list reads only fields of the pinned ServerArgs, and fires for a case above."""
    from sglang.srt.server_args import ServerArgs

    from shplb.sglang.features import _UNSUPPORTED

    defaults = {
        field.name: field.default if field.default is not dataclasses.MISSING else None
        for field in dataclasses.fields(ServerArgs)
    }

    class Args:
        def __init__(self, **fields: Any) -> None:
            vars(self).update(defaults | fields)

    for test, what, advice in _UNSUPPORTED:
        assert not test(Args()), what
        assert any(test(Args(**fields)) for fields in _ON), what
        flags = [word for word in advice.split() if word.startswith("--")]
        assert all(flag[2:].replace("-", "_") in defaults for flag in flags), advice
    for fields in _ON:
        assert set(fields) <= set(defaults)


def test_base_backends_that_can_be_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    from shplb.sglang.server_args import _check_base_backend

    def args(chosen: str | None, prefill: str | None = None, device: str = "cuda") -> SimpleNamespace:
        return SimpleNamespace(device=device, attention_backend=chosen, prefill_attention_backend=prefill)

    for good in (args("fa3"), args("flashinfer"), args("trtllm_mha", "fa3"), args("torch_native", device="cpu")):
        _check_base_backend(good)
    with pytest.raises(StartRefusedError, match="takes the attention backend trtllm_mha here"):
        _check_base_backend(args("trtllm_mha"))
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    with pytest.raises(StartRefusedError, match="layout of the KV pool; unset it"):
        _check_base_backend(args("fa3"))


def test_chunks_whose_scores_would_fill_the_gpu_are_refused() -> None:
    shape = ModelShape.from_config(CONFIG | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128})
    plan = make_serving_plan(shape, tp_size=2)

    def args(chunk: int, context: int) -> SimpleNamespace:
        return SimpleNamespace(device="cuda", tp_size=2, chunked_prefill_size=chunk, context_length=context)

    check_selection_memory(args(8192, 1 << 22), plan)
    check_selection_memory(args(-1, 131072), plan)
    with pytest.raises(StartRefusedError, match=r"8\.0 GiB") as caught:
        check_selection_memory(args(-1, 1 << 20), plan)
    assert is_one_sentence(caught.value)
    advised = int(str(caught.value).split("--chunked-prefill-size ")[1].split()[0])
    check_selection_memory(args(advised, 1 << 20), plan)
    with pytest.raises(StartRefusedError):
        check_selection_memory(args(2 * advised, 1 << 20), plan)
    # A rank that holds copies has scores for them, too.
    order = placed_order(plan.loads, 2, 4)
    copied = msgspec.structs.replace(plan, physical_to_logical=order, replicas=4)
    with pytest.raises(StartRefusedError):
        check_selection_memory(args(advised, 1 << 20), copied)
