# SPDX-License-Identifier: Apache-2.0
"""What a profile and a plan must know of a model: its attention shape and a fingerprint of its weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

#: Architectures whose q/k/v/o projections are laid out head by head, so that KV groups can be permuted.
SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

#: Config key (written by shplb's padding) that lists KV heads which were added as zeros.
INERT_KEY = "shplb_inert_kv_heads"

# Far beyond any model, and small enough that arrays of one number per head of every layer can be made.
_MOST_LAYERS = 4096
_MOST_HEADS = 4096
_MOST_HIDDEN = 1 << 20

_SAMPLES_PER_SHARD = 16
_SAMPLE_BYTES = 4096


class UnsupportedModelError(ValueError):
    """A model that S-HPLB does not serve; the message is one sentence."""


class ModelShape(msgspec.Struct, frozen=True):
    """Attention shape of a dense GQA model; the query heads of KV head g are ``g*group_size .. (g+1)*group_size-1``."""

    architecture: str
    num_layers: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    inert_kv_heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (self.num_layers, self.num_qo_heads, self.num_kv_heads, self.head_dim, self.hidden_size)
        if min(sizes) < 1 or self.num_qo_heads % self.num_kv_heads:
            raise UnsupportedModelError(
                f"{self.num_layers} layers, {self.num_qo_heads} query heads over {self.num_kv_heads} KV heads of size "
                f"{self.head_dim} at hidden size {self.hidden_size} do not form whole groups: check the config.json."
            )
        limits = (_MOST_LAYERS, _MOST_HEADS, _MOST_HEADS, _MOST_HIDDEN, _MOST_HIDDEN)
        if any(size > most for size, most in zip(sizes, limits, strict=True)):
            raise UnsupportedModelError(
                f"{self.num_layers} layers, {self.num_qo_heads} query heads of size {self.head_dim} and hidden size "
                f"{self.hidden_size} are more than the {_MOST_LAYERS} layers, {_MOST_HEADS} heads and sizes of "
                f"{_MOST_HIDDEN} that S-HPLB serves: check the config.json."
            )
        if not set(self.inert_kv_heads) <= set(range(self.num_kv_heads)):
            raise UnsupportedModelError(
                f"{INERT_KEY} is {list(self.inert_kv_heads)}, expected heads below {self.num_kv_heads}: pad it again."
            )

    @property
    def group_size(self) -> int:
        return self.num_qo_heads // self.num_kv_heads

    @property
    def head_counts(self) -> dict[str, int]:
        """Extents of arrays that have an entry for every head of every layer, by the names that files use."""
        return {name: getattr(self, name) for name in ("num_layers", "num_qo_heads", "num_kv_heads")}

    @property
    def inert_qo_heads(self) -> frozenset[int]:
        """Query heads of padded KV groups, in the model's own order."""
        size = self.group_size
        return frozenset(group * size + head for group in self.inert_kv_heads for head in range(size))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a Hugging Face ``config.json`` mapping.

        Raises:
            UnsupportedModelError: unknown architecture, sliding window, or heads that do not form whole groups.
        """
        architecture = architecture_of(config)
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise UnsupportedModelError(
                f"S-HPLB serves {', '.join(SUPPORTED_ARCHITECTURES)}, this model is {architecture}: "
                "serve it without --enable-shplb."
            )
        if config.get("sliding_window") and config.get("use_sliding_window", True):
            raise UnsupportedModelError(
                f"S-HPLB does not serve sliding-window attention (sliding_window={config['sliding_window']}): "
                "serve this model without --enable-shplb."
            )
        if config.get("dual_chunk_attention_config"):
            raise UnsupportedModelError(
                "S-HPLB does not serve dual chunk attention: remove dual_chunk_attention_config from the model's "
                "config.json, or serve it without --enable-shplb."
            )
        heads, hidden = positive_int(config, "num_attention_heads"), positive_int(config, "hidden_size")
        return cls(
            architecture=architecture,
            num_layers=positive_int(config, "num_hidden_layers"),
            num_qo_heads=heads,
            num_kv_heads=positive_int(config, "num_key_value_heads", heads),
            head_dim=positive_int(config, "head_dim", hidden // heads),
            hidden_size=hidden,
            inert_kv_heads=inert_heads_of(config),
        )


def architecture_of(config: Mapping[str, Any]) -> str:
    """The one architecture that a Hugging Face config names; "unknown" where it names none or several."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else "unknown"


def positive_int(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A whole number >= 1 of a Hugging Face config, ``default`` where it is absent, null or 0.

    Raises:
        UnsupportedModelError: anything else stands there, or nothing and there is no default.
    """
    value = config.get(key) or default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModelError(
            f"{key} is {config.get(key)!r}, expected a positive integer: check the config.json."
        )
    return value


def inert_heads_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """KV heads that ``shplb pad`` added."""
    heads = config.get(INERT_KEY) or []
    if not isinstance(heads, list) or not all(isinstance(head, int) for head in heads):
        raise UnsupportedModelError(f"{INERT_KEY} is {heads!r}, expected a list of KV heads: pad the model again.")
    return tuple(heads)


class Fingerprint(msgspec.Struct, frozen=True):
    """Identity of a model: ``config`` always, ``weights`` where the files are on this disk ("" where unknown)."""

    config: str
    weights: str = ""

    def conflicts(self, other: "Fingerprint") -> bool:
        """True when the two can't be the same model; an unknown weights hash matches any."""
        if self.config != other.config:
            return True
        return bool(self.weights and other.weights and self.weights != other.weights)


# Of Llama, Mistral, Qwen2 and Qwen3 where a config names none.
_ROPE_THETA = 10000.0

#: Fields that change what attention computes; a renamed folder, another dtype or a new transformers version do not.
IDENTITY_FIELDS = (
    "architectures", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim",
    "intermediate_size", "vocab_size", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings",
    "sliding_window", INERT_KEY,
)  # fmt: skip


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 (hex) over the config fields that define the function of the model.

    Equal for the forms in which versions of transformers write one model: rope settings in ``rope_parameters`` or in
    ``rope_theta`` and ``rope_scaling``, defaults written or left out, numbers whole or not.
    """
    identity = {key: config[key] for key in IDENTITY_FIELDS if config.get(key) is not None}
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "sliding_window"):
        identity.pop(key, None)
    identity["rope_parameters"] = rope_of(config)
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        identity["sliding_window"] = config["sliding_window"]
    identity.setdefault("tie_word_embeddings", False)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        identity.setdefault("num_key_value_heads", heads)
        identity.setdefault("head_dim", hidden // heads)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings as transformers 5 writes them, numbers as floats; the default type where none are given."""
    found: dict[str, Any] = {"rope_theta": config.get("rope_theta") or _ROPE_THETA}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key)
        found |= given if isinstance(given, dict) else {}
    kind = found.pop("type", None)  # its older name
    found["rope_type"] = found.get("rope_type") or kind or "default"
    return {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in found.items()
        if value is not None
    }


def weights_hash(model_dir: Path) -> str:
    """sha256 (hex) over each shard's size, header and 16 samples of 4 KiB: tells fine-tunes apart in milliseconds.

    Of safetensors where there are some, else of PyTorch's own files; "" when the folder holds neither.
    """
    shards = sorted(model_dir.glob("*.safetensors")) or sorted([*model_dir.glob("*.bin"), *model_dir.glob("*.pt")])
    if not shards:
        return ""
    digest = hashlib.sha256()
    for shard in shards:
        size = shard.stat().st_size
        digest.update(f"{shard.name}:{size}".encode())
        with shard.open("rb") as stream:
            # Where these bytes are no header length, they make some start in the file, always the same one.
            start = min(8 + int.from_bytes(stream.read(8), "little"), size)
            digest.update(stream.read(max(start - 8, 0)))
            for index in range(_SAMPLES_PER_SHARD):
                stream.seek(start + (size - start) * index // _SAMPLES_PER_SHARD)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def read_config(model_dir: Path) -> dict[str, Any]:
    """``config.json`` of a Hugging Face folder; UnsupportedModelError when there is none."""
    path = model_dir / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path} can't be read ({error}): give a Hugging Face model folder.") from None
    if not isinstance(config, dict):
        raise UnsupportedModelError(f"{path} is not a JSON object: give a Hugging Face model folder.")
    return config


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model reads, as its config says; None where it names no positive number."""
    tokens = config.get("max_position_embeddings")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def fingerprint(model_dir: Path, config: Mapping[str, Any] | None = None) -> Fingerprint:
    """Fingerprint of the model in ``model_dir`` (a local Hugging Face folder)."""
    config = read_config(model_dir) if config is None else config
    return Fingerprint(config=config_hash(config), weights=weights_hash(model_dir))
