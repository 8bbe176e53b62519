# SPDX-License-Identifier: Apache-2.0
"""Run by test_hooks.py: drives the patched hunks with stand-ins for shplb and prints what happened as JSON."""

import argparse
import dataclasses
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import sglang.srt.model_loader.loader as loader
import sglang.srt.server_args as server_args_module
from sglang.srt.layers.attention.attention_registry import attn_backend_wrapper
from sglang.srt.runtime_context import get_context
from sglang.srt.server_args import ServerArgs

calls: list[list[Any]] = []


def main(model_path: str) -> None:
    """Prints one JSON object as the last line."""
    install_stand_ins()
    loader.get_model_architecture = lambda _config: (lambda **_kwargs: "model", "")
    report: dict[str, Any] = {"file": server_args_module.__file__, "unset": initialized_model(SimpleNamespace())}
    names = [field.name for field in dataclasses.fields(ServerArgs) if "shplb" in field.name]
    report["fields"] = {name: getattr(ServerArgs(model_path="dummy"), name) for name in names}
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    report["help"] = parser.format_help()
    flags = ["--enable-shplb", "--shplb-plan", "plan.json", "--shplb-density", "0.25"]
    parsed = ServerArgs.from_cli_args(parser.parse_args(["--model-path", "dummy", *flags]))
    report["parsed"] = [parsed.enable_shplb, parsed.shplb_plan, parsed.shplb_density]

    common = {"model_path": model_path, "device": "cpu", "skip_tokenizer_init": True}
    off = ServerArgs(**common, attention_backend="torch_native")
    get_context().set_server_args(off)
    report["off"] = {
        "model": initialized_model(SimpleNamespace()),
        "backend": attn_backend_wrapper(runner(off), "base"),
        "calls": list(calls),
    }
    on = ServerArgs(**common, enable_shplb=True)
    report["on"] = list(calls)
    calls.clear()
    ServerArgs(**common, shplb_density=0.0)
    report["flag_alone"] = [call[0] for call in calls]
    calls.clear()
    get_context().set_server_args(on)
    config = SimpleNamespace()
    initialized_model(config)
    model, passed = calls[0]
    report["hooks"] = {"placement": [model, passed is config], "backend": attn_backend_wrapper(runner(on), "base")}
    print(json.dumps(report))


def install_stand_ins() -> None:
    """Puts recording modules where the hunks import from."""

    def resolve_defaults(args: ServerArgs) -> None:
        calls.append(["resolve_defaults", args.device, args.attention_backend, args.page_size])
        args.attention_backend = "torch_native"

    def check_supported(args: ServerArgs) -> None:
        calls.append(["check_supported", args.device, args.attention_backend, args.page_size])

    def install_head_placement(model: object, config: object) -> None:
        calls.append([model, config])

    for name in ("shplb", "shplb.sglang", "shplb.sglang.server_args", "shplb.sglang.weights", "shplb.sglang.backend"):
        sys.modules[name] = ModuleType(name)
    modules: dict[str, Any] = sys.modules
    modules["shplb.sglang.server_args"].resolve_defaults = resolve_defaults
    modules["shplb.sglang.server_args"].check_supported = check_supported
    modules["shplb.sglang.weights"].install_head_placement = install_head_placement
    modules["shplb.sglang.backend"].wrap_attn_backend = lambda _runner, backend: f"wrapped {backend}"


def initialized_model(config: SimpleNamespace) -> object:
    """Result of the patched loader function for a model class that gives "model"."""
    config.hf_config = None
    return loader._initialize_model(config, SimpleNamespace(draft_model_idx=None))


def runner(args: ServerArgs) -> SimpleNamespace:
    """As much of a ModelRunner as the backend wrapper reads."""
    return SimpleNamespace(
        server_args=args, hybrid_gdn_config=None, use_mla_backend=False, mambaish_config=None, is_draft_worker=False
    )


if __name__ == "__main__":
    main(sys.argv[1])
