# SPDX-License-Identifier: Apache-2.0
"""Time to first token with and without S-HPLB, by SGLang's own serving benchmark, on the same GPUs one after the other.

    python bench/bench_serving.py --shape llama-3.1-8b --tp 2 --server-arg=--disable-custom-all-reduce
    python bench/bench_serving.py --model-path MODEL --plan PLAN --variants fa3,flashinfer,shplb
    python bench/bench_serving.py --shape llama-3.1-8b --cached 1x120000,64x120000,512x120000,2048x120000
    SHPLB_SAMPLE_EVERY=4 python bench/bench_serving.py --shape llama-3.1-8b --tp 2 --variants shplb,shplb-contiguous
    python bench/bench_serving.py                       # without a GPU: SmolLM2, short prompts

Every variant's server starts once and serves the same prompts of random tokens; the radix cache is on and must not hit,
but for --cached, where it must hold exactly the prefix.
Counters of the server say for every point which path ran, NVML how fast GPUs ran meanwhile and what they drew (means;
GPUs that wait run faster afterwards). A variant that fails is recorded and the others go on. Times
are what `python -m sglang.benchmark.serving` prints, but for --cached (see cached_points.py). Writes JSON after every
variant, and a table at the end.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from cached_points import WARM_UP, cached_point_of, draw_prompts, generate_body, send_streamed
from dummy_model import DUMMY_OPTIONS, replicated, spread_plan, unplaced, without_tail, write_dummy_model
from gpu_clocks import GpuClocks
from provenance import provenance
from serving_arguments import PRECISE_TOKENS, SHORT_TOKENS, arguments
from serving_points import (
    SPARSE,
    PointFailedError,
    WrongPathError,
    check_path,
    client_options,
    path_taken,
    point_of,
    print_table,
    public_command,
    sentence_of,
)

from shplb.container import write_atomically
from shplb.errors import UserError
from shplb.model import read_config
from shplb.plan import ServingPlan
from shplb.processes import interrupt_on_sigterm
from shplb.sglang.launch import Server, ServerFailedError

SERVER_OPTIONS = {
    "cuda": ["--chunked-prefill-size", "8192"],
    "cpu": ["--dtype", "float32", "--max-total-tokens", "20000"],
}

_spawn = multiprocessing.get_context("spawn")


def run_client(options: list[str], log: Path) -> str:
    """SGLang's benchmark in this process, output to ``log``; what went wrong, or "".

    A process that stays, since its imports alone take ten seconds, at every point.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all GPU memory is the server's
    with log.open("a") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        from sglang.benchmark.serving import cli_main

        sys.argv = ["serving", *options]
        try:
            cli_main()
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
    return ""


def prompts_at(length: int, concurrency: int, count: int, precise_count: int) -> int:
    """Prompts of a point: ``count`` per client where they are short, else ``count`` in all, and one per client.

    Of the shortest, one client sends ``precise_count``: there S-HPLB must show that it costs nothing.
    """
    if length <= PRECISE_TOKENS and concurrency == 1:
        return max(precise_count, count)
    return count * concurrency if length <= SHORT_TOKENS else max(count, concurrency)


def counters(server: Server, variant: str) -> dict[str, Any]:
    """S-HPLB's section of ``/server_info``, {} for a stock variant; WrongPathError when it is there and should not."""
    found = server.get("/server_info")["internal_states"][0].get("shplb")
    if (found is not None) != (variant in SPARSE):
        raise WrongPathError(f"{variant} has {'an' if found else 'no'} shplb section in /server_info.")
    return found or {}


def measured_facts(found: dict[str, Any]) -> dict[str, Any]:
    """Of an S-HPLB server's counters, what all its steps together took; times on the GPU where steps were sampled."""
    wanted = (
        "plan_ms_per_step", "imbalance", "contiguous_imbalance", "sampled_steps", "selection_ms_per_step",
        "attention_ms_per_step", "measured_bubble", "predicted_over_measured", "attention_time_drift",
        "feedback", "rank_speeds",
    )  # fmt: skip
    return {key: found[key] for key in wanted if key in found}


def warm_up(server: Server, args: argparse.Namespace, length: int, concurrency: int) -> None:
    """Prompts that are not among the measured ones: a batch where they are short, else one per length."""
    count = concurrency if length <= SHORT_TOKENS else int(concurrency == args.concurrency[0])
    if count:
        drawn = np.random.default_rng([args.seed, length, concurrency]).integers(args.vocabulary, size=(count, length))
        sampling = {"max_new_tokens": 4, "temperature": 0.0, "ignore_eos": True}
        server.post("/generate", {"input_ids": drawn.tolist(), "sampling_params": sampling})


def measure(
    client: Pool, server: Server, variant: str, args: argparse.Namespace, length: int, concurrency: int
) -> dict[str, Any]:
    """One point, checked."""
    prompts = prompts_at(length, concurrency, args.prompts_per_point, args.precise_prompts)
    file = args.work / f"{variant}.{length}x{concurrency}.jsonl"
    file.unlink(missing_ok=True)
    options = client_options(
        server.port, length=length, concurrency=concurrency, prompts=prompts, output_tokens=args.output_tokens,
        seed=args.seed, file=file,
    )  # fmt: skip
    warm_up(server, args, length, concurrency)
    before = counters(server, variant)
    clocks = GpuClocks(args.tp if args.device == "cuda" else 0)
    try:
        with clocks:
            failure = client.apply_async(run_client, (options, args.work / f"{variant}.client.log")).get(args.timeout_s)
    except multiprocessing.TimeoutError:
        failure = f"no result after {args.timeout_s:.0f} s"
    if failure or not file.exists():
        raise PointFailedError(f"the benchmark failed at {length} tokens and {concurrency} clients: {failure}.")
    row = {"variant": variant, "input_tokens": length, "concurrency": concurrency}
    row |= point_of(json.loads(file.read_text().splitlines()[-1]), length, prompts) | clocks.facts()
    if before:
        path = path_taken(before, counters(server, variant))
        check_path(variant, length, path, args.sparse_from)
        row |= path
    return row


def measure_cached(
    server: Server, variant: str, args: argparse.Namespace, index: int, page_size: int
) -> dict[str, Any]:
    """One point with a cached prefix, checked; which path is right there, the planner decides."""
    point = args.cached[index]
    prefix, prompts = draw_prompts(args.cached, index, args.vocabulary, args.seed)
    server.post("/generate", generate_body(prefix, 1, stream=False))
    bodies = [generate_body(prompt, args.output_tokens, stream=True) for prompt in prompts]
    for body in bodies[:WARM_UP]:
        send_streamed(server.port, body, args.timeout_s)
    before = counters(server, variant)
    streams = [send_streamed(server.port, body, args.timeout_s) for body in bodies[WARM_UP:]]
    row = {"variant": variant, "input_tokens": sum(point), "concurrency": 1}
    row |= cached_point_of(streams, point, page_size, args.output_tokens)
    return row | (path_taken(before, counters(server, variant)) if before else {})


def points_of(
    client: Pool, server: Server, variant: str, args: argparse.Namespace, page_size: int
) -> Iterator[dict[str, Any]]:
    """Rows of a variant, as they are measured."""
    for length in args.lengths:
        for concurrency in args.concurrency:
            yield measure(client, server, variant, args, length, concurrency)
    if args.cached:
        server.flush_cache()
    for index in range(len(args.cached)):
        yield measure_cached(server, variant, args, index, page_size)


def run_variant(variant: str, plan: Path | None, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Start a server, add its facts to ``result["servers"]`` and its points to ``result["rows"]``."""
    facts: dict[str, Any] = {"variant": variant}
    result["servers"].append(facts)
    options = [*SERVER_OPTIONS[args.device], *args.model_options, "--skip-server-warmup"]
    if plan is not None:
        options += ["--enable-shplb", "--shplb-plan", str(plan)]
    elif variant != "stock":
        options += ["--attention-backend", variant]
    elif args.device == "cpu":
        options += ["--attention-backend", "torch_native"]  # SGLang's own choice needs AMX
    log, start = args.work / f"{variant}.log", time.monotonic()
    made = Server(args.model, log, tp_size=args.tp, device=args.device, options=[*options, *args.server_arg])
    facts["command"] = public_command(made.shell_command())
    with _spawn.Pool(1) as client, made as server:
        client.apply_async(run_client, (["--help"], args.work / "imports.log"))  # imports while the server starts
        try:
            server.wait_ready(args.timeout_s)
            facts["start_s"] = round(time.monotonic() - start, 1)
            info = server.get("/server_info")
            facts |= {key: info.get(key) for key in ("attention_backend", "page_size", "chunked_prefill_size")}
            for row in points_of(client, server, variant, args, info["page_size"]):
                result["rows"].append(row)
                print(json.dumps(row), flush=True)
            facts |= measured_facts(counters(server, variant))
        except OSError as error:
            raise ServerFailedError(server.with_log(f"the server went away ({error})")) from None


def plan_files(args: argparse.Namespace) -> dict[str, Path | None]:
    """The plan of each variant, None for a stock one; given, or made for this model."""
    sparse = [variant for variant in args.variants if variant in SPARSE]
    files: dict[str, Path | None] = dict.fromkeys(args.variants)
    if not sparse:
        return files
    if args.plan is None:
        placed = spread_plan(
            args.model, tp_size=args.tp, density=args.density, sigma=args.sigma, seed=args.seed,
            group_sigma=args.group_sigma,
        )  # fmt: skip
    else:
        placed = ServingPlan.load(args.plan)
    make = {
        "shplb": lambda: placed,
        "shplb-contiguous": lambda: unplaced(placed),
        "shplb-replicas": lambda: replicated(placed, args.replicas),
        "shplb-no-tail": lambda: without_tail(placed),
    }
    for variant in sparse:
        files[variant] = path = args.work / f"{variant}.plan.safetensors"
        make[variant]().save(path)
    return files


def prepare_model(args: argparse.Namespace) -> Path:
    """The model's folder: given, or made of a shape, or SmolLM2 where there is no GPU."""
    if args.model_path is not None:
        return Path(args.model_path).resolve()
    if args.shape is not None:
        return write_dummy_model(args.work / args.shape, args.shape)
    from shplb.hf.gguf import convert_smollm2

    return convert_smollm2(args.work / "smollm2-float32")


def gpu_names(count: int) -> list[str]:
    """Of the GPUs that ``count`` ranks use; none on a machine without."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(min(count, torch.cuda.device_count()))]


def main() -> None:
    interrupt_on_sigterm()
    args = arguments(__doc__ or "")
    args.model = prepare_model(args)
    args.model_options = DUMMY_OPTIONS if args.shape else []
    try:
        config = read_config(args.model)
        plans = plan_files(args)
    except ValueError as error:
        sys.exit(str(error))
    args.vocabulary, longest = config["vocab_size"], config.get("max_position_embeddings", 1 << 30)
    most = max([*args.lengths[-1:], *map(sum, args.cached)])
    if most + args.output_tokens > longest:
        sys.exit(f"a prompt has {most} tokens, the model takes {longest} tokens, the answer's among them.")
    with _spawn.Pool(1) as pool:  # in a process that ends: this one must hold no GPU memory beside the servers
        facts = pool.apply(provenance, (args,)) | {"gpus": pool.apply(gpu_names, (args.tp,))}
    if args.warm_machine:
        variant, plan = next(iter(plans.items()))
        short = argparse.Namespace(**vars(args) | {"lengths": args.lengths[:1], "cached": []})
        run_variant(variant, plan, short, {"servers": [], "rows": []})
    result: dict[str, Any] = {"bench": "serving", **facts, "servers": [], "rows": []}
    wrong = ""
    for variant, plan in plans.items():
        try:
            run_variant(variant, plan, args, result)
        except UserError as error:
            result["servers"][-1]["failed"] = sentence_of(error)
            if isinstance(error, WrongPathError):
                wrong = str(error)
            else:
                print(f"{variant} failed: {error}", file=sys.stderr, flush=True)
        finally:  # also what was measured before an interrupt
            write_atomically(args.out, json.dumps(result, indent=1).encode())
        if wrong:
            sys.exit(wrong)
    print_table(result, args.variants)
    print(f"wrote {args.out}")
    sys.exit(any("failed" in server for server in result["servers"]))


if __name__ == "__main__":
    main()
