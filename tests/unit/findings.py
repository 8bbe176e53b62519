# SPDX-License-Identifier: Apache-2.0
"""What every diagnosis must hold to, and its worst level by area."""

from shplb.diagnosis import Finding


def levels(findings: list[Finding]) -> dict[str, str]:
    """area -> its worst level."""
    order = ("ok", "note", "problem")
    worst: dict[str, str] = {}
    for finding in findings:
        worst[finding.area] = max(worst.get(finding.area, "ok"), finding.level, key=order.index)
        assert (finding.level == "problem") == bool(finding.fix), finding
        assert "\n" not in finding.text + finding.fix
    return worst
