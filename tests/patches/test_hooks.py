# SPDX-License-Identifier: Apache-2.0
"""The hunks at work in a patched copy of the installed SGLang: fields, flags, and when each hook is called."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shplb import patching

pytestmark = pytest.mark.server

# Runs in its own process, with the patched copy first on the path and a recording stand-in for shplb.
PROBE = Path(__file__).with_name("hook_probe.py")
TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def report(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("patched")
    # Hardlinks: the tool must not write through them, and the copy is made in a second.
    copy_function = _link_or_copy
    package = Path(shutil.copytree(installed, root / "sglang", symlinks=True, copy_function=copy_function))
    patching.apply(package)
    model = root / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY_LLAMA))
    environment = {**os.environ, "PYTHONPATH": str(root), "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none"}
    run = [sys.executable, str(PROBE), str(model)]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, check=False, cwd=root)
    assert result.returncode == 0, result.stderr[-4000:]
    found: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    assert found["file"] == str(package / "srt" / "server_args.py")
    return found


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_flags_are_fields_of_server_args(report: dict[str, object]) -> None:
    assert report["fields"] == {
        "enable_shplb": False,
        "shplb_plan": None,
        "shplb_density": None,
        "shplb_profile": None,
        "shplb_trace": None,
    }
    for flag in ("--enable-shplb", "--shplb-plan", "--shplb-density", "--shplb-profile", "--shplb-trace"):
        assert flag in str(report["help"])
    assert report["parsed"] == [True, "plan.json", 0.25]


def test_nothing_is_called_when_off(report: dict[str, object]) -> None:
    assert report["off"] == {"calls": [], "model": "model", "backend": "base"}


def test_handlers_run_around_the_resolution(report: dict[str, object]) -> None:
    # At the first call the device is known and neither backend nor page size is resolved; at the last call both are.
    assert report["on"] == [["resolve_defaults", "cpu", None, None], ["check_supported", "cpu", "torch_native", 1]]


def test_flag_without_the_switch_is_checked(report: dict[str, object]) -> None:
    assert report["flag_alone"] == ["check_supported"]


def test_model_and_backend_are_handed_over(report: dict[str, object]) -> None:
    assert report["hooks"] == {"placement": ["model", True], "backend": "wrapped base"}


def test_loader_works_where_no_server_arguments_are_set(report: dict[str, object]) -> None:
    assert report["unset"] == "model"
