# SPDX-License-Identifier: Apache-2.0
"""The one error of this package."""


class PatchRefused(RuntimeError):
    """The tree was left as it is; the message says in one sentence what was wrong, what was expected, how to fix it."""
