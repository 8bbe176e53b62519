# SPDX-License-Identifier: Apache-2.0
"""The patch of SGLang as a tool: apply, check and revert it on an installed wheel or a source checkout.

Imports neither torch nor sglang, so it runs before they work and changes files that nobody has open.
"""

from .operations import Outcome, apply, check, revert
from .refusal import PatchRefused
from .tree import State

__all__ = ["Outcome", "PatchRefused", "State", "apply", "check", "revert"]
