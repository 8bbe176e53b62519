# SPDX-License-Identifier: Apache-2.0
"""Whether SGLang is patched and will find the plugin."""

from shplb import patching
from shplb.diagnosis.finding import Finding, problem_of
from shplb.sglang.plugin import require_found
from shplb.sglang.refusal import StartRefusedError


def check_patch() -> list[Finding]:
    """State of the installed SGLang; as `shplb patch check`, it finishes a patch run that was killed."""
    try:
        outcome = patching.check()
    except patching.PatchRefused as refusal:
        return [problem_of("patch", refusal)]
    if outcome.state is patching.State.APPLIED:
        return [Finding("patch", "ok", f"applied to {outcome.package}")]
    if outcome.state is patching.State.NOT_APPLIED:
        return [Finding("patch", "problem", f"not applied to {outcome.package}", "run `shplb patch apply`")]
    return [problem_of("patch", outcome.fault)]


def check_plugin() -> list[Finding]:
    """The entry point through which SGLang calls us in every process, and the variable that may keep it out."""
    try:
        require_found()
    except StartRefusedError as refusal:
        return [problem_of("plugin", str(refusal).removeprefix("S-HPLB can't start: "))]
    return [Finding("plugin", "ok", "SGLang finds it")]
