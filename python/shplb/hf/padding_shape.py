# SPDX-License-Identifier: Apache-2.0
"""Head counts before and after padding, and the checks of a config that padding needs."""

from typing import Any

import msgspec

SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class PaddingShape(msgspec.Struct, frozen=True):
    """Heads of a model and how many KV heads it gets; ``group_size`` query heads share one KV head."""

    num_kv_heads: int
    padded_num_kv_heads: int
    group_size: int
    head_dim: int

    def rows(self, projection: str) -> tuple[int, int]:
        """Return the rows (of q, k, v) or columns (of o) that belong to heads, and how many padding adds."""
        per_group = self.head_dim * (self.group_size if projection in "qo" else 1)
        return self.num_kv_heads * per_group, (self.padded_num_kv_heads - self.num_kv_heads) * per_group

    def padded_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of ``config`` for the padded model."""
        inert = list(range(self.num_kv_heads, self.padded_num_kv_heads))
        return config | {
            "num_key_value_heads": self.padded_num_kv_heads,
            "num_attention_heads": self.padded_num_kv_heads * self.group_size,
            # Readers derive it from hidden size and heads otherwise, which no longer fit together.
            "head_dim": self.head_dim,
            # A model may be padded again.
            "shplb_inert_kv_heads": [*config.get("shplb_inert_kv_heads", []), *inert],
        }


def padding_shape(config: dict[str, Any], num_kv_heads: int, model: str) -> PaddingShape:
    """Return the shape of a Hugging Face ``config`` padded to ``num_kv_heads``; ``model`` names it in errors.

    Raises ValueError where the model cannot be padded to that.
    """
    architectures = config.get("architectures") or []
    if len(architectures) != 1 or architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{model} has architecture {', '.join(architectures) or 'unknown'}, expected one of "
            f"{', '.join(SUPPORTED_ARCHITECTURES)} to pad KV groups"
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise ValueError(f"{model} has quantised weights, which cannot be padded; give the original model")
    missing = [name for name in ("num_attention_heads", "hidden_size") if not isinstance(config.get(name), int)]
    if missing:
        raise ValueError(f"{model}/config.json has no whole number {missing[0]}, expected a Hugging Face model config")
    num_qo_heads = config["num_attention_heads"]
    current = config.get("num_key_value_heads") or num_qo_heads
    if num_qo_heads % current:
        raise ValueError(f"{model} has {num_qo_heads} query heads for {current} KV heads, expected a multiple")
    if num_kv_heads <= current:
        raise ValueError(f"num_kv_heads is {num_kv_heads}, expected more than the {current} KV heads of {model}")
    group_size = num_qo_heads // current
    if architectures[0] == "LlamaForCausalLM" and config["hidden_size"] % (num_kv_heads * group_size):
        # transformers' LlamaConfig insists on it, although head_dim is given.
        raise ValueError(
            f"num_kv_heads is {num_kv_heads}, giving {num_kv_heads * group_size} query heads, but a Llama config must "
            f"have query heads that divide the hidden size {config['hidden_size']} of {model}; choose another number"
        )
    head_dim = config.get("head_dim") or config["hidden_size"] // num_qo_heads
    return PaddingShape(
        num_kv_heads=current, padded_num_kv_heads=num_kv_heads, group_size=group_size, head_dim=head_dim
    )
