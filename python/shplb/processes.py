# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive their parent, however it ends."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from shplb.log_causes import cause_of

_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 15

# Bound here, since nothing should be loaded or allocated between fork and exec.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _die_with_parent() -> None:
    # SIGKILL, since SGLang answers SIGTERM by finishing what is queued; its ranks die with it in the same way.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def interrupt_on_sigterm() -> None:
    """Make SIGTERM raise KeyboardInterrupt in the main thread, so that ``with`` blocks end their children."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])


class ManagedProcess:
    """A command in a process group of its own; leaving the ``with`` block ends the whole group."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path | None,
        env: Mapping[str, str] | None = None,
        grace_s: float = 10.0,
    ) -> None:
        """``log``: file for stdout and stderr, None inherits them. ``env`` is added to this process's environment.

        ``grace_s``: seconds between SIGTERM and SIGKILL; less for a command that runs inside another managed one.
        """
        self.command, self.log, self.env, self.grace_s = list(command), log, dict(env or {}), grace_s

    def __enter__(self) -> Self:
        stream = None
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            stream = self.log.open("wb")
        self.process = subprocess.Popen(
            self.command,
            stdout=stream,
            stderr=subprocess.STDOUT if stream else None,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.env},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        if stream:
            stream.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """subprocess.TimeoutExpired if it runs longer."""
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """SIGTERM to the group, then SIGKILL to whatever is left after a grace period or a second Ctrl-C."""
        try:
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + self.grace_s
            while time.monotonic() < deadline and self._alive():
                self.process.poll()
                time.sleep(0.1)
        finally:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def with_log(self, what: str) -> str:
        """``what`` and why, for an error message: a cause that the log names, or else its last lines."""
        text = self._log_text()
        cause = cause_of(text)
        if cause is not None:
            return f"{what}, since {cause} (log: {self.log})."
        return f"{what}; its log {self.log} ends:\n{_tail(text, _TAIL_LINES)}"

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines of the log."""
        return _tail(self._log_text(), lines)

    def _log_text(self) -> str:
        return "" if self.log is None else self.log.read_text(errors="replace")

    def _alive(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return
