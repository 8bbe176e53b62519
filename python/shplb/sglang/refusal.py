# SPDX-License-Identifier: Apache-2.0
"""How the server says no: one sentence on stderr and a non-zero exit code, without a traceback."""


class StartRefusedError(SystemExit, ValueError):
    """A start that shplb refuses.

    As a SystemExit it prints its message alone and exits with 1 under ``python -m sglang.launch_server``, and it
    crosses SGLang's ``except Exception`` handlers; as a ValueError, users of ``sglang.Engine`` can catch it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"S-HPLB can't start: {reason}")
