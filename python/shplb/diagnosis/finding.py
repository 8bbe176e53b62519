# SPDX-License-Identifier: Apache-2.0
"""One line of a diagnosis."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """``level``: "ok", "note" (good to know) or "problem" (must be fixed before serving, and ``fix`` says how)."""

    area: str
    level: Literal["ok", "note", "problem"]
    text: str
    fix: str = ""


def problem_of(area: str, error: object) -> Finding:
    """A problem from one of our error sentences, which end in what to do after a colon or semicolon."""
    sentence = str(error)
    for separator in reversed(list(re.finditer("[:;] ", sentence))):
        text, fix = sentence[: separator.start()], sentence[separator.end() :]
        if fix.count("(") == fix.count(")"):  # else it stands in a remark in brackets
            return Finding(area, "problem", text, fix.rstrip("."))
    return Finding(area, "problem", sentence.rstrip("."))
