# SPDX-License-Identifier: Apache-2.0
"""Perplexity of a Hugging Face model folder on shipped English text: a check that needs no second copy of the model."""

from pathlib import Path
from typing import Any

from shplb.texts.library import source_text

_TEXT = "austen_mansfield_park"
_NUM_TOKENS = 512


def english_perplexity(model_dir: Path, *, model: Any = None) -> float:
    """Return the perplexity over 512 tokens of a shipped novel, computed in fp32 on the CPU.

    model: an already loaded transformers model of that folder, to save loading it again.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    # From inside the book, after the title page.
    text = source_text(_TEXT)[2000 : 2000 + 16 * _NUM_TOKENS]
    token_ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)[:_NUM_TOKENS]])
    with torch.inference_mode():
        logits = model.eval()(input_ids=token_ids).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, token_ids[0, 1:]).exp())
