# SPDX-License-Identifier: Apache-2.0
"""Head counts before and after padding, and the checks of a config that padding needs."""

from typing import Any

import msgspec

from shplb.model import INERT_KEY, SUPPORTED_ARCHITECTURES, architecture_of, inert_heads_of, positive_int

_MOST_KV_HEADS = 4096


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
            INERT_KEY: [*inert_heads_of(config), *inert],
        }


def padding_shape(config: dict[str, Any], num_kv_heads: int, model: str) -> PaddingShape:
    """Return the shape of a Hugging Face ``config`` padded to ``num_kv_heads``; ``model`` names it in errors.

    Raises ValueError where the model cannot be padded to that.
    """
    architecture = architecture_of(config)
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{model} has architecture {architecture}, expected one of {', '.join(SUPPORTED_ARCHITECTURES)} to pad KV "
            "groups"
        )
    if config.get("quantization_config") or config.get("compression_config"):
        raise ValueError(f"{model} has quantised weights, which cannot be padded; give the original model")
    num_qo_heads, hidden_size = positive_int(config, "num_attention_heads"), positive_int(config, "hidden_size")
    current = positive_int(config, "num_key_value_heads", num_qo_heads)
    head_dim = positive_int(config, "head_dim", hidden_size // num_qo_heads)
    inert_heads_of(config)
    if num_qo_heads % current:
        raise ValueError(f"{model} has {num_qo_heads} query heads for {current} KV heads, expected a multiple")
    if not current < num_kv_heads <= _MOST_KV_HEADS:
        raise ValueError(
            f"num_kv_heads is {num_kv_heads}, expected more than the {current} KV heads of {model} and at most "
            f"{_MOST_KV_HEADS}"
        )
    group_size = num_qo_heads // current
    if architecture == "LlamaForCausalLM" and hidden_size % (num_kv_heads * group_size):
        # transformers' LlamaConfig insists on it, although head_dim is given.
        raise ValueError(
            f"num_kv_heads is {num_kv_heads}, giving {num_kv_heads * group_size} query heads, but a Llama config must "
            f"have query heads that divide the hidden size {hidden_size} of {model}; choose another number"
        )
    return PaddingShape(
        num_kv_heads=current, padded_num_kv_heads=num_kv_heads, group_size=group_size, head_dim=head_dim
    )
