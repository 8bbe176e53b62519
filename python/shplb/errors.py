# SPDX-License-Identifier: Apache-2.0
"""Base class of errors that a person can act on; the command line prints their message alone."""


class UserError(RuntimeError):
    """What went wrong, what was expected and how to fix it."""


class CalibrationError(UserError):
    """A profile that can't be made; the message is one sentence."""


class CalibrationTimeoutError(CalibrationError):
    """It takes longer than it may; finished documents are kept for the next time."""
