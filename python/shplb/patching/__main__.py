# SPDX-License-Identifier: Apache-2.0
"""`python -m shplb.patching apply|check|revert`: the command alone, for environments without the rest of shplb."""

from .command import app

app(prog_name="python -m shplb.patching")
