# SPDX-License-Identifier: Apache-2.0
"""Texts and prompts of a comparison, none of which calibration uses."""

from pathlib import Path

from shplb.calibration import load_tokenizer
from shplb.model import fingerprint
from shplb.planning import PlanningError
from shplb.profile import HeadProfile
from shplb.texts import Document, RetrievalPrompt, held_out_documents, retrieval_prompts

_DOMAINS = ("prose", "code", "manual", "dialogue")
_ANSWER_TOKENS = 64  # room that a prompt leaves


def held_out(
    model_path: Path, profile: HeadProfile, tokens: int, *, texts: int, prompts: int, seed: int
) -> tuple[list[Document], list[RetrievalPrompt]]:
    """``texts`` documents of ``tokens`` tokens in turn from four domains, and ``prompts`` retrieval prompts.

    Raises:
        PlanningError: the profile is of another model.
        CalibrationError: the model has no tokenizer. ValueError: the texts hold less.
    """
    if profile.fingerprint.conflicts(fingerprint(model_path)):
        raise PlanningError(f"the profile was made of another model than {model_path}: profile this one.")
    tokenizer = load_tokenizer(model_path)
    documents = held_out_documents(tokens, tokenizer, domains=_DOMAINS, limit=texts, seed=seed)
    return documents, retrieval_prompts(
        tokens - _ANSWER_TOKENS, tokenizer, count=prompts, seed=seed, split="held_out"
    )  # fmt: skip
