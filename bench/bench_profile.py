# SPDX-License-Identifier: Apache-2.0
"""What measuring head curves adds to a dense prefill: time of a document and GPU memory, with and without.

    python bench/bench_profile.py --shape llama-3.1-8b --lengths 32768,131072
    python bench/bench_profile.py --shape qwen2.5-7b --lengths 32768

Two engines, one after the other, with random weights and all options of `shplb profile` alike; only the second one
records. Both prefill the same documents of random tokens; the first one of each length warms up and is not counted.
Memory is what the GPU has in use at most, whoever uses it, so nothing else should run there. A profile's first document
is also measured on all rows in every fourth layer, which costs more and is not timed here. Writes JSON.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from dummy_model import SHAPES, write_dummy_model
from provenance import provenance

from shplb.calibration import default_lengths
from shplb.commands.numbers import parse_numbers
from shplb.container import write_atomically
from shplb.errors import UserError
from shplb.recording import CurveSums, ProfileJob, ProfileRequest
from shplb.sglang.cpu import cpu_environment
from shplb.sglang.profile_worker import engine_options, prefill
from shplb.sparsity import PAGE_SIZE, SparsityRule, query_block_size

KINDS = ("dense", "recording")
_POLL_S = 0.02


def documents_of(args: argparse.Namespace) -> dict[str, list[int]]:
    """Token ids by name, "LENGTHxINDEX"; index 0 of every length warms up."""
    rng, vocabulary = np.random.default_rng(args.seed), SHAPES[args.shape]["vocab_size"]
    return {
        f"{length}x{index}": rng.integers(vocabulary, size=length).tolist()
        for length in args.lengths
        for index in range(args.documents + 1)
    }


def options_of(kind: str, job: ProfileJob, folder: Path) -> dict[str, Any]:
    """Of an engine of this kind: those of a profile, and without recording what they imply."""
    options = engine_options(job, folder) | {"load_format": "dummy"}
    if kind == "recording":
        return options
    for name in ("enable_shplb", "shplb_profile"):
        del options[name]
    if job.device == "cpu":  # SGLang's own choice there needs AMX
        return options | {"attention_backend": options["attention_backend"] or "torch_native"}
    return options | {"page_size": PAGE_SIZE, "cuda_graph_backend_prefill": "disabled"}


def write_request(folder: Path, names: tuple[str, ...], args: argparse.Namespace, length: int) -> None:
    """What a profile up to ``length`` tokens asks for."""
    config = SHAPES[args.shape]
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    ProfileRequest(
        documents=names,
        lengths=default_lengths(length),
        rule=SparsityRule(query_block=query_block_size(head_dim)),
        row_sampling=args.row_sampling,
        seed=args.seed,
    ).save(folder)


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """A list of one number: the bytes that were in use on the first visible GPU at most, 0 without one.

    Asks the driver, so that this process takes no memory there itself.
    """
    import torch

    most, ended = [0], threading.Event()
    if not torch.cuda.is_available():
        yield most
        return

    def poll() -> None:
        while not ended.wait(_POLL_S):
            most[0] = max(most[0], torch.cuda.device_memory_used(0))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def run_engine(kind: str, job: ProfileJob, folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds by document, and most bytes in use while it was prefilled; in a process of its own."""
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    if job.device == "cpu":
        os.environ.update(cpu_environment(job.tp_size))
    from sglang import Engine

    engine = Engine(**options_of(kind, job, folder))
    seconds, used = {}, {}
    for name, tokens in job.documents.items():
        with most_memory() as most:
            start = time.perf_counter()
            prefill(engine, name, tokens)
            seconds[name] = time.perf_counter() - start
        used[name] = most[0]
    engine.shutdown()
    return seconds, used


def rows_of(kind: str, length: int, seconds: dict[str, float], used: dict[str, int]) -> dict[str, Any]:
    """One measurement: all documents of a length but the first."""
    mine = [name for name in seconds if name.startswith(f"{length}x")][1:]
    times = [seconds[name] for name in mine]
    row = {"kind": kind, "tokens": length, "seconds": median(times), "all_seconds": times}
    return row | {"gpu_bytes": max(used[name] for name in mine)}


def added(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per length, what recording adds: share of the dense time, and bytes."""
    of = {(row["kind"], row["tokens"]): row for row in rows}
    return [
        {
            "tokens": length,
            "added_share": of["recording", length]["seconds"] / of["dense", length]["seconds"] - 1.0,
            "added_gpu_bytes": of["recording", length]["gpu_bytes"] - of["dense", length]["gpu_bytes"],
        }
        for length in sorted({row["tokens"] for row in rows})
    ]


def check_recorded(folder: Path, names: list[str]) -> None:
    """UserError unless every document has curves: a bench must not time an engine that recorded nothing."""
    for name in names:
        rows = CurveSums.load(folder, name, 0).rows if CurveSums.path(folder, name, 0).exists() else np.zeros((1, 1))
        if not rows.any(axis=1).all():
            raise UserError(f"no curves of {name} were recorded; see the engine's messages above.")


def measure(kind: str, args: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """Rows of one engine, printed as they are made."""
    documents, folder = documents_of(args), args.work / "request"
    write_request(folder, tuple(documents), args, args.lengths[-1])
    for name in documents:
        CurveSums.path(folder, name, 0).unlink(missing_ok=True)
    dtype = SHAPES[args.shape]["torch_dtype"]
    job = ProfileJob(str(model), 1, args.device, dtype, args.attention_backend, documents)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            seconds, used = pool.submit(run_engine, kind, job, folder).result()
        except BrokenProcessPool:
            raise UserError(f"the {kind} engine ended before its documents did; see its messages above.") from None
    if kind == "recording":
        check_recorded(folder, [name for name in documents if name.startswith(f"{args.lengths[-1]}x")])
    rows = [rows_of(kind, length, seconds, used) for length in args.lengths]
    for row in rows:
        print(json.dumps({"shape": args.shape} | row), flush=True)
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--lengths", default="32768", help="tokens of a document, ascending, e.g. 32768,131072")
    parser.add_argument("--documents", type=int, default=2, help="per length, beside the one that warms up")
    parser.add_argument("--row-sampling", type=int, default=8)
    parser.add_argument("--attention-backend", default="", help="SGLang's; by default its own choice")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench_profile"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/profile.json"))
    args = parser.parse_args()
    args.lengths = parse_numbers("--lengths", args.lengths, "token counts such as 32768,131072")
    if args.documents < 1:
        parser.error(f"--documents is {args.documents}, expected 1 or more.")
    return args


def main() -> None:
    try:
        args = arguments()
        model = write_dummy_model(args.work / args.shape, args.shape)
        rows = [row for kind in KINDS for row in measure(kind, args, model)]
    except (UserError, ValueError) as error:
        sys.exit(str(error))
    result = {"bench": "profile", **provenance(args), "rows": rows, "added": added(rows)}
    write_atomically(args.out, json.dumps(result, indent=1).encode())
    for row in result["added"]:
        print(json.dumps({"shape": args.shape} | row), flush=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
