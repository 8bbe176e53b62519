# SPDX-License-Identifier: Apache-2.0
"""What goes through SGLang's plugin registry: a ``shplb`` section in ``/server_info``, ``--shplb-policy``, and how long
every prompt is."""

import argparse
import os
from importlib.metadata import entry_points
from typing import Any

from shplb.sglang.parts import INIT_TARGET, note_prompt_lens
from shplb.sglang.refusal import StartRefusedError

_GROUP, _NAME = "sglang.srt.plugins", "shplb"

HOOK_TARGET = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"
FLAG_TARGET = "sglang.srt.server_args.ServerArgs.add_cli_args"


def register() -> None:
    """Entry point ``sglang.srt.plugins``: called by SGLang in every process before it starts."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(HOOK_TARGET, add_section, HookType.AFTER)
    HookRegistry.register(FLAG_TARGET, add_flag, HookType.AFTER)
    HookRegistry.register(INIT_TARGET, note_prompt_lens, HookType.AFTER)


class PolicyFlag(argparse.Action):
    """Puts the policy where all ranks read it: an experiment needs no field of ``ServerArgs``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        from shplb.policies import parse_policy
        from shplb.sglang.environment import POLICY

        try:
            parse_policy(values)
        except ValueError as error:
            parser.error(f"{option_string}: {error}.")
        os.environ[POLICY] = values


def add_flag(result: Any, parser: argparse.ArgumentParser) -> None:
    """AFTER hook: ``--shplb-policy``; None leaves the result as it is."""
    from shplb.policies import DEFAULT, POLICIES

    parser.add_argument(
        "--shplb-policy",
        action=PolicyFlag,
        default=argparse.SUPPRESS,
        metavar="NAME[,score=...,choice=...,coverage=...,tail=...]",
        help=f"How S-HPLB scores and chooses pages: {DEFAULT}, or experimental, to be compared with: "
        f"{', '.join(name for name in POLICIES if name != DEFAULT)}.",
    )


def add_section(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """AFTER hook: put the rank's counters under ``internal_state["shplb"]``; None leaves the result as it is."""
    from shplb.sglang.metrics import STEP_COUNTERS

    if not getattr(scheduler.server_args, "enable_shplb", False):
        return None
    result.internal_state["shplb"] = STEP_COUNTERS.report()
    return result


def require_found() -> None:
    """Refuse before any process starts what would keep SGLang from loading the plugin; StartRefusedError."""
    allowed = os.environ.get("SGLANG_PLUGINS", "")
    if allowed and _NAME not in {name.strip() for name in allowed.split(",")}:
        raise StartRefusedError(f"SGLANG_PLUGINS is '{allowed}', which leaves its plugin out; add '{_NAME}' to it.")
    if not entry_points(group=_GROUP, name=_NAME):
        raise StartRefusedError("its plugin is not installed; install shplb with pip, not by a path alone.")


def require_active() -> None:
    """SGLang's registry logs and swallows errors, so make sure that the hook is there; StartRefusedError if not."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target, function in ((HOOK_TARGET, add_section), (INIT_TARGET, note_prompt_lens)):
        ours = any(hook is function for _, hook, *_ in HookRegistry._hooks.get(target, ()))
        if target in HookRegistry._patched and ours:
            continue
        raise StartRefusedError(
            "its plugin is not active in this process; reinstall shplb and let SGLANG_PLUGINS, if set, contain 'shplb'."
        )
