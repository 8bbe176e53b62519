# SPDX-License-Identifier: Apache-2.0
"""Start ``python -m sglang.launch_server`` as a managed child and wait until it answers."""

import json
import random
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shplb.errors import UserError
from shplb.processes import ManagedProcess
from shplb.sglang.cpu import cpu_environment

# A proxy for the outside world must not be asked for a server on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerFailedError(UserError):
    """The server ended or never became ready; the message holds the end of its log."""


def free_port() -> int:
    """A free port below 50000: SGLang derives further ports from it by adding up to 10000."""
    for port in random.sample(range(20000, 50000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerFailedError("no free port was found between 20000 and 50000; stop other servers.")


def launch_command(model_path: Path, *, tp_size: int, device: str, port: int, options: list[str]) -> list[str]:
    """The command line that a person would type."""
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model_path)]
    command += ["--tp", str(tp_size), "--device", device, "--host", "127.0.0.1", "--port", str(port)]
    return command + options


class Server(ManagedProcess):
    """A running SGLang server; use as a context manager, then :meth:`wait_ready`."""

    def __init__(
        self,
        model_path: Path,
        log: Path,
        *,
        tp_size: int = 1,
        device: str = "cpu",
        options: list[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        command = launch_command(model_path, tp_size=tp_size, device=device, port=self.port, options=options or [])
        base = cpu_environment(tp_size) if device == "cpu" else {}
        super().__init__(command, log=log, env={**base, **(env or {})})
        self._needed_env = base
        self.url = f"http://127.0.0.1:{self.port}"

    def shell_command(self) -> str:
        """The command as one could paste it into a shell, environment variables included."""
        variables = [f"{name}={value}" for name, value in self._needed_env.items()]
        return shlex.join(["env", *variables, *self.command] if variables else self.command)

    def wait_ready(self, timeout_s: float = 900.0, on_wait: Callable[[float], None] = lambda seconds: None) -> None:
        """Return when ``/health`` answers 200; ServerFailedError when the server ends first or time is up."""
        start = time.monotonic()
        while (passed := time.monotonic() - start) < timeout_s:
            if self.returncode is not None:
                raise ServerFailedError(self.with_log(f"the server ended with code {self.returncode}"))
            try:
                with _opener.open(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            on_wait(passed)
            time.sleep(1.0)
        raise ServerFailedError(self.with_log(f"the server was not ready after {timeout_s:.0f} s"))

    def get(self, path: str) -> Any:
        return json.loads(self._request(urllib.request.Request(self.url + path), 600.0))

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 1800.0) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.loads(self._request(request, timeout_s))

    def flush_cache(self, timeout_s: float = 60.0) -> None:
        """Empty the radix cache when nothing runs any more; ServerFailedError when that takes longer."""
        request = urllib.request.Request(f"{self.url}/flush_cache?timeout={timeout_s:g}", method="POST")
        self._request(request, timeout_s + 60.0)

    @staticmethod
    def _request(request: urllib.request.Request, timeout_s: float) -> bytes:
        try:
            with _opener.open(request, timeout=timeout_s) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace").strip()
            raise ServerFailedError(f"{request.full_url} answered {error.code}: {text}") from None

    def shplb_state(self) -> dict[str, Any]:
        """The ``shplb`` section of ``/server_info`` (rank 0)."""
        return dict(self.get("/server_info")["internal_states"][0]["shplb"])
