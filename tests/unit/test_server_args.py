# SPDX-License-Identifier: Apache-2.0
"""Real ServerArgs of the patched SGLang: defaults, and one sentence for everything that S-HPLB does not serve."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import is_one_sentence

pytest.importorskip("sglang")

from server_arguments import plan_of, refusal, server_args, write_model

from shplb.plan import FORMAT_VERSION
from shplb.recording import ProfileRequest
from shplb.sglang.active_plan import refuse_overrides
from shplb.sglang.refusal import StartRefusedError
from shplb.sparsity import SparsityRule

pytestmark = pytest.mark.usefixtures("server_environment")


def test_refusals_are_exits_and_value_errors() -> None:
    error = StartRefusedError("a reason.")
    assert isinstance(error, SystemExit)
    assert isinstance(error, ValueError)
    assert error.code == str(error) == "S-HPLB can't start: a reason."


def test_defaults(llama: Path, llama_plan: str) -> None:
    args = server_args(llama, shplb_plan=llama_plan)
    assert (args.attention_backend, args.page_size) == ("torch_native", 64)
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert args.shplb_plan == llama_plan
    assert not args.disable_radix_cache
    assert not args.disable_overlap_schedule
    assert args.chunked_prefill_size > 0


def test_given_values_stay(llama: Path, llama_plan: str) -> None:
    args = server_args(
        llama, shplb_plan=llama_plan, page_size=1, attention_backend="torch_native", enable_mixed_chunk=True
    )
    assert (args.attention_backend, args.page_size) == ("torch_native", 1)
    assert args.enable_mixed_chunk
    assert "TRITON_INTERPRET" not in os.environ


def test_off_changes_nothing(llama: Path) -> None:
    args = server_args(llama, enable_shplb=False)
    assert args.page_size == 1
    assert "TRITON_INTERPRET" not in os.environ


def test_resolving_twice_is_as_good_as_once(llama: Path, llama_plan: str) -> None:
    args = server_args(llama, shplb_plan=llama_plan)
    again = dataclasses.replace(args)
    assert (again.attention_backend, again.page_size, again.shplb_plan) == ("torch_native", 64, llama_plan)


@pytest.mark.parametrize("backend", ["triton", "flashinfer", "fa3", "intel_amx"])
@pytest.mark.parametrize("flag", ["attention_backend", "prefill_attention_backend"])
def test_other_base_backends(llama: Path, llama_plan: str, flag: str, backend: str) -> None:
    assert f"is {backend}, S-HPLB wraps torch_native" in refusal(llama, shplb_plan=llama_plan, **{flag: backend})


def test_devices_and_sizes(llama: Path, llama_plan: str) -> None:
    assert "--device is npu" in refusal(llama, shplb_plan=llama_plan, device="npu")
    assert "--page-size is 32" in refusal(llama, shplb_plan=llama_plan, page_size=32)
    assert "--chunked-prefill-size is 100" in refusal(
        llama, shplb_plan=llama_plan, chunked_prefill_size=100, page_size=1
    )


def test_another_path_than_auto_or_sparse(llama: Path, llama_plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("auto", "sparse", ""):
        monkeypatch.setenv("SHPLB_PATH", value)
        assert server_args(llama, shplb_plan=llama_plan).enable_shplb
    monkeypatch.setenv("SHPLB_PATH", "dense")
    assert "SHPLB_PATH is dense, expected auto or sparse" in refusal(llama, shplb_plan=llama_plan)


@pytest.mark.parametrize(
    "fields",
    [{"shplb_plan": "x"}, {"shplb_density": 0.5}, {"shplb_density": 0.0}, {"shplb_profile": "x"}, {"shplb_trace": "x"}],
)
def test_flags_without_the_switch(llama: Path, fields: dict[str, Any]) -> None:
    assert "without --enable-shplb" in refusal(llama, enable_shplb=False, **fields)


def test_plan_for_another_model(llama: Path, tmp_path: Path) -> None:
    shapes = [
        {"num_hidden_layers": 3}, {"num_key_value_heads": 2}, {"rope_theta": 5e5},
        {"architectures": ["MistralForCausalLM"]},
    ]  # fmt: skip
    for index, changes in enumerate(shapes):
        other = write_model(tmp_path / f"other{index}", **changes)
        plan_of(other).save(tmp_path / "plan")
        assert "another model" in refusal(llama, shplb_plan=str(tmp_path / "plan"))


def test_plan_for_other_weights(llama: Path, tmp_path: Path, llama_plan: str) -> None:
    tuned = write_model(tmp_path / "tuned")
    save_file({"x": np.zeros(100, np.float32)}, tuned / "model.safetensors")
    assert "another model" in refusal(tuned, shplb_plan=llama_plan)


def test_plan_for_another_tp_size(llama: Path, tmp_path: Path, llama_plan: str) -> None:
    assert "was made for --tp 1, the server has --tp 2" in refusal(llama, shplb_plan=llama_plan, tp_size=2)
    plan_of(llama, tp_size=2).save(tmp_path / "b.plan")
    assert server_args(llama, shplb_plan=str(tmp_path / "b.plan"), tp_size=2).tp_size == 2


@pytest.mark.parametrize("tp_size", [3, 6, 8])
def test_kv_heads_that_sglang_would_pad_or_replicate(llama: Path, llama_plan: str, tp_size: int) -> None:
    assert f"4 KV heads can't be split over --tp {tp_size}" in refusal(llama, shplb_plan=llama_plan, tp_size=tp_size)


def test_unusable_plan_files(llama: Path, tmp_path: Path, llama_plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, path = Path(llama_plan).read_bytes(), tmp_path / "bad.plan"
    assert "not a file" in refusal(llama, shplb_plan=str(path))
    for bad in (b"", data[: len(data) // 2], data[:-1], data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]):
        path.write_bytes(bad)
        assert "damaged" in refusal(llama, shplb_plan=str(path))
    monkeypatch.setattr("shplb.plan.FORMAT_VERSION", FORMAT_VERSION + 1)
    plan_of(llama).save(path)
    monkeypatch.undo()
    assert "update shplb" in refusal(llama, shplb_plan=str(path))
    assert "not a ServingPlan" in refusal(llama, shplb_plan=str(llama / "model.safetensors"))


def test_a_plan_made_again_is_read_again(llama: Path, tmp_path: Path, llama_plan: str) -> None:
    server_args(llama, shplb_plan=llama_plan)
    plan_of(llama, tp_size=2).save(Path(llama_plan))
    assert "was made for --tp 2" in refusal(llama, shplb_plan=llama_plan)


@pytest.mark.parametrize(
    "changes", [{"architectures": ["DeepseekV2ForCausalLM"]}, {"architectures": ["Gemma2ForCausalLM"]}]
)
def test_other_architectures(llama: Path, tmp_path: Path, llama_plan: str, changes: dict[str, Any]) -> None:
    """Checked on arguments that are resolved for a Llama, since SGLang asks much of such models' configs first."""
    from shplb.sglang.server_args import check_supported

    args = server_args(llama, shplb_plan=llama_plan)
    args.model_path = str(write_model(tmp_path / "other", **changes))
    with pytest.raises(StartRefusedError, match=changes["architectures"][0]):
        check_supported(args)


def test_sliding_window(tmp_path: Path, llama_plan: str) -> None:
    changes = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 512}
    assert "sliding-window" in refusal(write_model(tmp_path / "mistral", **changes), shplb_plan=llama_plan)


def test_overrides_of_what_a_profile_must_know(llama: Path, llama_plan: str) -> None:
    overrides = json.dumps({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}})
    message = refusal(llama, shplb_plan=llama_plan, json_model_override_args=overrides)
    assert "changes rope_scaling" in message
    server_args(llama, shplb_plan=llama_plan, json_model_override_args='{"use_cache": true}')


def straight(llama: Path, path: Path) -> str:
    order = np.tile(np.arange(4, dtype=np.int32), (2, 1))
    plan_of(llama, physical_to_logical=order).save(path)
    return str(path)


def test_permuting_needs_plain_weights(llama: Path, llama_plan: str, tmp_path: Path) -> None:
    from shplb.sglang.server_args import check_supported

    args, unmoved = server_args(llama, shplb_plan=llama_plan), straight(llama, tmp_path / "straight")
    loaders = ("sharded_state", "layered", "gguf", "bitsandbytes", "remote", "remote_instance", "flash_rl", "mistral")
    cases = [
        *({"load_format": loader} for loader in loaders),
        {"quantization": "fp8"},
        {"custom_weight_loader": ["m.f"]},
    ]
    for fields in cases:
        with pytest.raises(StartRefusedError, match="moves heads between ranks") as caught:
            check_supported(changed(args, shplb_plan=llama_plan, **fields))
        assert is_one_sentence(caught.value)
        check_supported(changed(args, shplb_plan=unmoved, **fields))


def changed(args: Any, **fields: Any) -> Any:
    """A copy with other resolved values, without resolving again."""
    import copy

    other = copy.copy(args)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def test_quantised_checkpoints(tmp_path: Path, llama: Path) -> None:
    """The config alone tells, also where --quantization is not given."""
    from shplb.sglang.server_args import check_supported

    quantised = write_model(tmp_path / "awq", quantization_config={"quant_method": "awq", "bits": 4})
    plan_of(quantised).save(tmp_path / "awq.plan")
    ProfileRequest(documents=(), lengths=(1024,), rule=SparsityRule(query_block=128)).save(tmp_path)
    base = server_args(llama, shplb_profile=str(tmp_path))
    args = changed(base, model_path=str(quantised), shplb_profile=None, shplb_plan=str(tmp_path / "awq.plan"))
    with pytest.raises(StartRefusedError, match="quantised by awq"):
        check_supported(args)
    with pytest.raises(StartRefusedError, match="profile and serve the unquantised"):
        check_supported(changed(args, shplb_plan=None, shplb_profile="x"))


def test_quantised_kv_cache_of_the_checkpoint(tmp_path: Path, llama: Path) -> None:
    from shplb.sglang.server_args import check_supported

    config = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    model = write_model(tmp_path / "fp8kv", quantization_config=config)
    plan_of(model).save(tmp_path / "plan")
    args = changed(server_args(llama, shplb_plan=straight(llama, tmp_path / "base")), model_path=str(model))
    args.shplb_plan = str(tmp_path / "plan")
    with pytest.raises(StartRefusedError, match="asks for a quantised KV cache") as caught:
        check_supported(args)
    assert is_one_sentence(caught.value)


def test_plugin_left_out(llama: Path, llama_plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_PLUGINS", "other, another")
    assert "add 'shplb' to it" in refusal(llama, shplb_plan=llama_plan)
    monkeypatch.setenv("SGLANG_PLUGINS", "other, shplb")
    server_args(llama, shplb_plan=llama_plan)


@pytest.mark.parametrize("fields", [{"base_gpu_id": 1}, {"trust_remote_code": True}, {"tokenizer_path": "other"}])
def test_calibration_at_start_would_not_know(llama: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    from shplb.sglang.server_args import check_supported

    args = changed(
        server_args(llama, shplb_plan=straight(llama, tmp_path / "plan")), shplb_plan=None, shplb_density=0.5, **fields
    )
    with pytest.raises(StartRefusedError, match="can't be profiled at start") as caught:
        check_supported(args)
    assert is_one_sentence(caught.value)


def test_profile_folder_without_a_request(llama: Path, tmp_path: Path) -> None:
    assert "holds no profiling request" in refusal(llama, shplb_profile=str(tmp_path))


def test_trace_folder_that_cannot_be_made(llama: Path, llama_plan: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "can't be written to" in refusal(llama, shplb_plan=llama_plan, shplb_trace=str(tmp_path / "file" / "x"))


def test_profiling_and_serving_at_once(llama: Path, llama_plan: str) -> None:
    assert "drop one" in refusal(llama, shplb_plan=llama_plan, shplb_profile="x")


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5, float("nan")])
def test_density_out_of_range(llama: Path, density: float) -> None:
    assert "--shplb-density is" in refusal(llama, shplb_density=density)


def test_density_beside_a_plan(llama: Path, llama_plan: str) -> None:
    assert "--shplb-density" in refusal(llama, shplb_plan=llama_plan, shplb_density=0.5)


@pytest.mark.server
def test_launch_server_says_one_sentence(llama: Path, tmp_path: Path) -> None:
    plan_of(llama, tp_size=2).save(tmp_path / "other.plan")
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(llama), "--device", "cpu"]
    command += ["--enable-shplb", "--shplb-plan", str(tmp_path / "other.plan")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == (
        f"S-HPLB can't start: {tmp_path}/other.plan was made for --tp 2, the server has --tp 1; "
        "make a plan with `shplb plan --tp 1` from the same profile."
    )


@pytest.mark.parametrize("overrides", ["{", "[1]", "no"])
def test_overrides_that_are_no_object(overrides: str) -> None:
    with pytest.raises(StartRefusedError) as caught:
        refuse_overrides(overrides)
    assert "--json-model-override-args" in str(caught.value)
    assert is_one_sentence(caught.value)
