# SPDX-License-Identifier: Apache-2.0
"""The command line of the quality bench."""

import argparse
import shlex
from pathlib import Path

import msgspec

from quality.variants import DENSE, Variant, VariantError, parse_variant, split_ranks
from quality.workload import MULTI_TURN, NAMES, Amounts
from shplb.calibration import ProfileSettings, check_request, choose_documents, default_lengths, profile_model
from shplb.commands.numbers import parse_numbers
from shplb.sglang.cpu import detect_device

#: For two cores and SmolLM2: tasks that it solves at 1536 tokens, of which the first 1024 are dense anyway.
QUICK = {
    "tokens": "1536", "variants": [DENSE, "min_error@0.75"], "prompts": 1, "texts": 2, "timed": 1,
    "tasks": f"niah_single_2,niah_multikey_1,{MULTI_TURN}",
}  # fmt: skip
_DEFAULTS = {
    "tokens": "4096", "variants": [DENSE, "min_error@0.2", "min_error@0.35"], "prompts": 20, "texts": 6, "timed": 3,
    "tasks": ",".join(NAMES),
}  # fmt: skip
_QUICK_DOCUMENTS = 1
_POOL_PROMPTS = {"cuda": 4, "cpu": 2}


class Arguments(msgspec.Struct):
    """What was asked for, checked; ``settings`` as argparse gave them, for the result."""

    settings: argparse.Namespace
    model_path: Path
    model_name: str | None
    profile: Path
    tokens: list[int]
    variants: list[Variant]
    tasks: list[str]
    amounts: Amounts
    texts: Path | None
    questions: Path | None
    device: str
    gpus: int
    parallel: int
    pool_tokens: int
    server_options: list[str]
    timeout_s: float
    work: Path
    out: Path
    check: Path | None


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", type=Path, help="Hugging Face folder; default: SmolLM2-135M, made in --work")
    parser.add_argument("--model-name", help="name in the results, default the folder's")
    parser.add_argument("--profile", type=Path, help="of `shplb profile`; default: made in --work, kept there")
    parser.add_argument("--tokens", help="prompt lengths, reply included, e.g. 16384,32768")
    parser.add_argument(
        "--variants", nargs="+",
        help="dense, BUDGETS@DENSITY, POLICY@DENSITY (with its own budgets), BUDGETS+POLICY@DENSITY; computed "
        "densities, which hold at the longest length; with :tp2 after it, on two ranks, and on one beside it",
    )  # fmt: skip
    parser.add_argument("--tasks", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--prompts", type=int, help="per task, length and server")
    parser.add_argument("--num-texts", dest="num_texts", type=int, help="documents for NLL")
    parser.add_argument("--timed", type=int, help="prompts per length whose time to the first token is taken alone")
    parser.add_argument("--texts", type=Path, help="your own: FILE.jsonl or a folder, for haystacks and NLL")
    parser.add_argument("--questions", type=Path, help="your own: .jsonl of question, answers, paragraphs")
    parser.add_argument("--parallel", type=int, default=1, help="servers at a time; a GPU holds many of a small model")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs over which the servers of a time are dealt")
    parser.add_argument("--pool-tokens", type=int, help="of every server's KV pool")
    parser.add_argument("--server-options", default="", help="further options for every server, in one string")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for servers to start")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="SmolLM2 at 1536 tokens, minutes on two cores")
    parser.add_argument("--check", type=Path, help="a result of the same run: exit code 1 where quality fell behind it")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench_quality"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/quality.json"))
    return parser


def arguments(description: str, argv: list[str] | None = None) -> Arguments:
    """The command line, checked; exits with a message where something is wrong."""
    parser = make_parser(description)
    given = parser.parse_args(argv)
    given.device = detect_device()
    for name, value in (QUICK if given.quick else _DEFAULTS).items():
        name = "num_texts" if name == "texts" else name
        if getattr(given, name) is None:
            setattr(given, name, value)
    try:
        tokens = list(parse_numbers("--tokens", given.tokens, "prompt lengths such as 16384,32768"))
        names = [name for text in given.variants for name in (split_ranks(text)[0], text)]
        variants = [parse_variant(text) for text in dict.fromkeys([DENSE, *names])]
    except (ValueError, VariantError) as error:
        parser.error(str(error))
    tasks = list(dict.fromkeys(given.tasks.split(",")))
    if unknown := sorted(set(tasks) - set(NAMES)):
        parser.error(f"--tasks holds {', '.join(unknown)}, expected some of {', '.join(NAMES)}.")
    for name in ("prompts", "num_texts", "parallel", "gpus"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(given, name)}, expected 1 or more.")
    most = max(variants, key=lambda variant: variant.tp_size)
    if given.device == "cuda" and most.tp_size > given.gpus:
        parser.error(f"--variants holds {most.name}, but --gpus is {given.gpus}.")
    work = given.work.resolve()
    return Arguments(
        settings=given, model_path=given.model_path or work / "smollm2-float32", model_name=given.model_name,
        profile=given.profile or work / "model.profile.safetensors", tokens=tokens, variants=variants, tasks=tasks,
        amounts=Amounts(given.prompts, given.num_texts, given.timed, given.seed), texts=given.texts,
        questions=given.questions, device=given.device, gpus=given.gpus, parallel=given.parallel,
        pool_tokens=given.pool_tokens or _POOL_PROMPTS[given.device] * tokens[-1],
        server_options=shlex.split(given.server_options), timeout_s=given.timeout_s, work=work, out=given.out,
        check=given.check,
    )  # fmt: skip


def provide_inputs(args: Arguments) -> None:
    """Make the model and the profile where none was given; those of an earlier run in the same folder are kept."""
    if args.settings.model_path is None:
        from shplb.hf.gguf import convert_smollm2

        convert_smollm2(args.model_path)
    if args.settings.profile is None and not args.profile.exists():
        settings = ProfileSettings(default_lengths(args.tokens[-1]), 1, args.device)
        limit = _QUICK_DOCUMENTS if args.settings.quick else 12
        check_request(args.model_path, args.profile, settings, limit=limit)
        documents = choose_documents(args.model_path, args.tokens[-1], texts=None, limit=limit)
        profile_model(args.model_path, documents, args.profile, settings)
