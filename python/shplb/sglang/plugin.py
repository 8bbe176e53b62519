# SPDX-License-Identifier: Apache-2.0
"""The one hook that goes through SGLang's plugin registry: a ``shplb`` section in ``/server_info``."""

from typing import Any

from shplb.sglang.refusal import StartRefusedError

HOOK_TARGET = "sglang.srt.managers.scheduler.Scheduler.get_internal_state"


def register() -> None:
    """Entry point ``sglang.srt.plugins``: called by SGLang in every process before it starts."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(HOOK_TARGET, add_section, HookType.AFTER)


def add_section(result: Any, scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """AFTER hook: put the rank's counters under ``internal_state["shplb"]``; None leaves the result as it is."""
    from shplb.sglang.metrics import STEP_COUNTERS

    if not getattr(scheduler.server_args, "enable_shplb", False):
        return None
    result.internal_state["shplb"] = STEP_COUNTERS.report()
    return result


def require_active() -> None:
    """SGLang's registry logs and swallows errors, so make sure that the hook is there; StartRefusedError if not."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if HOOK_TARGET not in HookRegistry._patched:
        raise StartRefusedError(
            "its plugin is not active in this process; reinstall shplb and let SGLANG_PLUGINS, if set, contain 'shplb'."
        )
