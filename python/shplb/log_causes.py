# SPDX-License-Identifier: Apache-2.0
"""Why SGLang ended, in a sentence, where its log says so; a person should not have to read a traceback for it."""

import re

_REFUSED = re.compile(r"S-HPLB can't start: (.+)")
_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|Not enough memory\. Please try")
_NO_MEMORY = (
    "the GPU has too little memory for this model beside what it already holds: end other programs on it, use more "
    "ranks (--tp), or shorter documents and prompts"
)


def cause_of(log: str) -> str | None:
    """What the text of a log gives as the reason, without a full stop; None where it gives none that is known."""
    refused = _REFUSED.findall(log)
    if refused:
        return str(refused[-1]).strip().removesuffix(".")
    return _NO_MEMORY if _MEMORY.search(log) else None
