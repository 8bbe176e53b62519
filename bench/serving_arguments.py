# SPDX-License-Identifier: Apache-2.0
"""The command line of the serving bench, and what it measures where nothing else is asked for."""

import argparse
from pathlib import Path
from typing import Any

from cached_points import REQUESTS, parse_cached
from dummy_model import SHAPES
from serving_points import SPARSE, STOCK

from shplb.commands.numbers import parse_numbers
from shplb.sglang.cpu import detect_device

# Up to here prompts cost little, so that every client sends several and the batched shapes are warmed up, too.
SHORT_TOKENS = 8192
# Up to here stock's own way is expected to be taken, and a difference of 2 % must show.
PRECISE_TOKENS = 4096

# A machine without a GPU shows that the bench works, not how fast anything is.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "lengths": "512,2048,4096,8192,32768,65536,126000", "concurrency": "1,4", "prompts_per_point": 3,
        "precise_prompts": 31,
        "output_tokens": 32, "density": 0.10, "sparse_from": 16384,
    },
    "cpu": {
        "lengths": "512,2048", "concurrency": "1", "prompts_per_point": 2, "precise_prompts": 2,
        "output_tokens": 8, "density": 0.4, "sparse_from": 2048,
    },
}  # fmt: skip


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model-path", type=Path)
    model.add_argument("--shape", choices=SHAPES, help="random weights")
    parser.add_argument("--variants", default="stock,shplb", help=f"of {','.join((*STOCK, *SPARSE))}")
    parser.add_argument("--device", choices=DEFAULTS, default=None)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--lengths", help="prompt tokens, e.g. 512,8192")
    parser.add_argument("--concurrency", help="clients at a time, e.g. 1,4")
    parser.add_argument(
        "--prompts-per-point", type=int, help=f"per client up to {SHORT_TOKENS} tokens, in all above (one per client)"
    )
    parser.add_argument(
        "--precise-prompts", type=int, help=f"at least so many from one client up to {PRECISE_TOKENS} tokens"
    )
    parser.add_argument(
        "--cached", default="", help=f"points with a cached prefix, new x cached tokens: 64x120000; {REQUESTS} requests"
    )
    parser.add_argument("--output-tokens", type=int)
    parser.add_argument("--plan", type=Path, help="default: random budgets as follows")
    parser.add_argument("--spread", choices=["lognormal"], default="lognormal")
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--group-sigma", type=float, default=0.0, help="further spread, of whole KV groups")
    parser.add_argument("--density", type=float, help="mean budget")
    parser.add_argument("--replicas", type=int, default=1, help="extra KV-group slots per rank of shplb-replicas")
    parser.add_argument("--seed", type=int, default=20260310)
    parser.add_argument("--sparse-from", type=int, help="prompt tokens from which S-HPLB must take its sparse path")
    parser.add_argument("--server-arg", action="append", default=[], help="for every server, e.g. =--mem-fraction=0.8")
    parser.add_argument(
        "--warm-machine",
        action="store_true",
        help="start the first server once before: the first one on a fresh machine answers short prompts more slowly",
    )
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for a server to start, and for every point")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench_serving"), help="folder for logs and plans")
    parser.add_argument("--out", type=Path, default=Path("bench/results/serving.json"))
    return parser


def arguments(description: str) -> argparse.Namespace:
    """The command line, with the defaults of this machine; exits with a message where something is wrong."""
    parser = make_parser(description)
    args = parser.parse_args()
    args.device = args.device or detect_device()
    for name, value in DEFAULTS[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.variants, args.work = list(dict.fromkeys(args.variants.split(","))), args.work.resolve()
    if unknown := set(args.variants) - {*STOCK, *SPARSE}:
        parser.error(f"--variants holds {', '.join(sorted(unknown))}, expected some of {', '.join((*STOCK, *SPARSE))}.")
    if args.device == "cuda" and args.model_path is None and args.shape is None:
        parser.error("give --model-path, or --shape for random weights.")
    try:
        args.lengths = parse_numbers("--lengths", args.lengths, "prompt lengths such as 512,8192")
        args.concurrency = parse_numbers("--concurrency", args.concurrency, "numbers of clients such as 1,4")
        args.cached = parse_cached(args.cached)
    except ValueError as error:
        parser.error(str(error))
    return args
