# SPDX-License-Identifier: Apache-2.0
"""Exit codes of every ``shplb`` command, in one table."""

EXIT_CODES = {
    0: "done",
    1: "refused or failed, with the reason in one line on stderr; for `doctor` and `patch check`: not all is well",
    2: "the command line is not understood",
    130: "interrupted by Ctrl-C or SIGTERM",
}

_MEANINGS = "; ".join(f"{code} {meaning.replace('; ', ', ')}" for code, meaning in EXIT_CODES.items())
#: Last line of every --help.
EPILOG = f"Exit codes: {_MEANINGS}."
