# SPDX-License-Identifier: Apache-2.0
"""Random models of every supported architecture, small enough to run in a millisecond."""

from typing import Any

import torch
import transformers

#: Changes to the configuration, by case. Sizes are the caller's; head_dim 24 is no quotient of theirs.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_biases": ("Llama", {"attention_bias": True, "head_dim": 24}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "mistral": ("Mistral", {"head_dim": 24, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}

VOCABULARY = 128


def tiny_model(case: str, **sizes: int) -> Any:
    """A causal LM in eval mode; ``sizes``: num_attention_heads, num_key_value_heads, hidden_size and so on."""
    family, changes = CASES[case]
    torch.manual_seed(0)
    base = {"intermediate_size": 48, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    config = getattr(transformers, f"{family}Config")(**(base | changes | sizes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    # Biases and norms start at constants, which would hide a mistake.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def logits(model: Any) -> torch.Tensor:
    """Of a fixed batch: [2, 20, VOCABULARY]."""
    with torch.inference_mode():
        return model(torch.arange(40).reshape(2, 20) * 3 % VOCABULARY).logits
