# SPDX-License-Identifier: Apache-2.0
"""Several servers at a time: started together, asked together, timed one after the other."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from quality.sampling import Sample, take_sample, time_prompts
from quality.variants import Variant, plan_path
from quality.workload import Workload
from shplb.sglang.environment import PATH
from shplb.sglang.launch import Server, ServerFailedError
from shplb.texts.encoding import Encoder

#: Beside the longest prompt's, tokens that the KV pool of a server holds.
_POOL_SLACK = 4096
_CHUNK_TOKENS = {"cuda": 8192, "cpu": 1536}


class ServerSettings(msgspec.Struct, frozen=True):
    """What all servers of a run share. options: come last and so win. gpus: over which servers of one rank are dealt
    in turn; those of several take the first ones. pool_tokens: of every KV pool.
    """

    model_path: Path
    device: str
    gpus: int
    work: Path
    pool_tokens: int
    options: list[str]
    timeout_s: float

    def server_of(self, variant: Variant, index: int) -> Server:
        """The run's server number ``index``, not started yet; sparse ones take our path where tokens are new."""
        options = ["--skip-server-warmup", "--max-total-tokens", str(self.pool_tokens + _POOL_SLACK)]
        options += ["--chunked-prefill-size", str(_CHUNK_TOKENS[self.device])]
        if self.device == "cpu":
            options += ["--dtype", "float32"]
        elif self.gpus > 1 and variant.tp_size == 1:
            options += ["--base-gpu-id", str(index % self.gpus)]
        env = {}
        if variant.is_stock:
            options += ["--attention-backend", "torch_native"] if self.device == "cpu" else []
        else:
            options += ["--enable-shplb", "--shplb-plan", str(plan_path(self.work, variant.name))]
            options += ["--shplb-policy", variant.policy] if variant.policy else []
            env = {PATH: "sparse"}
        log = self.work / f"{variant.name}.log"
        options += self.options
        return Server(self.model_path, log, tp_size=variant.tp_size, device=self.device, options=options, env=env)


@contextlib.contextmanager
def running(variants: list[Variant], settings: ServerSettings) -> Iterator[dict[str, Server]]:
    """Servers of all variants, started but not awaited; a server dies with the thread that started it."""
    with contextlib.ExitStack() as stack:
        made = [settings.server_of(variant, index) for index, variant in enumerate(variants)]
        yield {variant.name: stack.enter_context(server) for variant, server in zip(variants, made, strict=True)}


def await_ready(servers: dict[str, Server], timeout_s: float) -> dict[str, str]:
    """Return when all answer; the reason, in one sentence, of those that failed, by name."""
    failed = {}
    for name, server in servers.items():
        try:
            server.wait_ready(timeout_s)
        except ServerFailedError as error:
            failed[name] = str(error)
    return failed


def sample_all(
    servers: dict[str, Server], workload: Workload, encoder: Encoder, stock: str,
    on_sample: Callable[[str, Sample], None], on_failure: Callable[[str, str], None],
) -> None:  # fmt: skip
    """Ask all servers at once, then time them one after the other; each is reported when it has answered, and again
    where it was timed. ``stock``: the name of the one that has no S-HPLB.
    """
    samples: dict[str, Sample] = {}
    with concurrent.futures.ThreadPoolExecutor(len(servers)) as pool:
        names = {
            pool.submit(take_sample, server, workload, encoder, sparse=name != stock): name
            for name, server in servers.items()
        }
        for future in concurrent.futures.as_completed(names):
            name = names[future]
            try:
                sample = future.result()
            except (ServerFailedError, OSError) as error:
                on_failure(name, f"{name} failed at {workload.tokens} tokens: {error}")
                continue
            if name != stock and not sample.path["sparse_steps"]:
                log = servers[name].log
                on_failure(name, f"{name} computed no step sparse at {workload.tokens} tokens; see {log}.")
                continue
            samples[name] = sample
            on_sample(name, sample)
    for name, sample in samples.items() if workload.timed else ():
        sample.ttft_ms = time_prompts(servers[name], workload.timed)
        on_sample(name, sample)
