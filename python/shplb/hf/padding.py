# SPDX-License-Identifier: Apache-2.0
"""Inert KV groups for models whose number of KV heads does not divide by the tensor-parallel size."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from shplb.hf.folder import build_folder
from shplb.hf.padding_shape import PaddingShape, padding_shape

_PADDER_VERSION = 1
_INDEX_NAME = "model.safetensors.index.json"
# Besides the weights: config, generation config, tokenizer, chat template.
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
_ATTENTION = re.compile(r"\.self_attn\.([qkvo])_proj\.(\w+)$")


def pad_kv_groups(model_dir: Path, out_dir: Path, num_kv_heads: int) -> Path:
    """Write the model of ``model_dir`` with ``num_kv_heads`` KV heads to ``out_dir`` and return it; outputs stay equal.

    The added KV groups have zero q, k and v rows (and biases) and zero o_proj columns: a zero value head gives a zero
    output, whatever its attention. Group size stays, so ``num_attention_heads`` grows with ``num_kv_heads``; the config
    gets an explicit ``head_dim`` and ``shplb_inert_kv_heads``, the indexes of the added KV heads. One weight file is in
    memory at a time. Returns at once where ``out_dir`` was made from the same files.

    Raises ValueError for an unsupported architecture, quantised weights, ``num_kv_heads`` not above the model's, or
    weight files that do not fit the config.
    """
    model_dir = Path(model_dir)
    config = _read_json(model_dir / "config.json")
    shape = padding_shape(config, num_kv_heads, str(model_dir))
    weight_paths = _weight_paths(model_dir)
    key = _key(model_dir, weight_paths, num_kv_heads)

    def build(folder: Path) -> None:
        sizes = [_pad_file(path, folder / path.name, shape) for path in weight_paths]
        _write_index(model_dir, folder, sum(sizes))
        _copy_others(model_dir, folder)
        (folder / "config.json").write_text(json.dumps(shape.padded_config(config), indent=2) + "\n")

    return build_folder(Path(out_dir), key, build)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise ValueError(f"{path} cannot be read, expected a Hugging Face model folder") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON, expected a Hugging Face model folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object, expected a Hugging Face model folder")
    return content


def _weight_paths(model_dir: Path) -> list[Path]:
    if (model_dir / _INDEX_NAME).is_file():
        weight_map = _read_json(model_dir / _INDEX_NAME).get("weight_map", {})
        paths = [model_dir / name for name in sorted(set(weight_map.values()))]
    else:
        paths = [model_dir / "model.safetensors"]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise ValueError(
            f"{model_dir} lacks {', '.join(missing) or 'weight files'}: padding reads safetensors weights, in "
            f"model.safetensors or as named by {_INDEX_NAME}; convert or download them"
        )
    for path in paths:
        _check_whole(path)
    return paths


def _check_whole(path: Path) -> None:
    """The header must fit the file's length, which is checked without reading the rest."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again") from None


def _key(model_dir: Path, weight_paths: list[Path], num_kv_heads: int) -> str:
    """Name the inputs: sizes and times of files, so that gigabytes of weights are not read to find a cached result."""
    others = [path for path in model_dir.iterdir() if _is_copied(path)]
    facts = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted([*weight_paths, *others])]
    digest = hashlib.sha256(json.dumps(facts).encode() + (model_dir / "config.json").read_bytes()).hexdigest()
    return f"padding {_PADDER_VERSION} to {num_kv_heads} of {digest}"


def _pad_file(source: Path, target: Path, shape: PaddingShape) -> int:
    """Write ``target``, the padded ``source``; return the bytes of its tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as file:
        tensors = {name: _pad_tensor(name, file.get_tensor(name), shape, source) for name in file.keys()}  # noqa: SIM118
        # Some readers refuse files without {"format": "pt"}.
        save_file(tensors, target, metadata=file.metadata() or {"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _pad_tensor(name: str, tensor: Any, shape: PaddingShape, source: Path) -> Any:
    """Return ``tensor`` with zeros added if it belongs to an attention head, else itself."""
    import torch

    match = _ATTENTION.search(name)
    if match is None:
        return tensor
    projection, kind = match.groups()
    if kind not in ("weight", "bias") or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"{source} holds {name} of type {tensor.dtype}: padding needs unquantised float32, float16 or bfloat16 "
            "weights, give the original model"
        )
    if projection == "o" and kind == "bias":
        return tensor
    axis = 1 if projection == "o" else 0
    num_rows, num_added = shape.rows(projection)
    if tensor.shape[axis] != num_rows:
        raise ValueError(
            f"{source} holds {name} of shape {list(tensor.shape)}, but its config says {num_rows} along axis {axis}"
        )
    zeros = list(tensor.shape)
    zeros[axis] = num_added
    return torch.cat([tensor, tensor.new_zeros(zeros)], dim=axis).contiguous()


def _write_index(model_dir: Path, folder: Path, num_bytes: int) -> None:
    if (model_dir / _INDEX_NAME).is_file():
        index = _read_json(model_dir / _INDEX_NAME)
        metadata = index.get("metadata") or {}
        # A parameter count of the unpadded model would be wrong now.
        metadata.pop("total_parameters", None)
        index["metadata"] = metadata | {"total_size": num_bytes}
        (folder / _INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _copy_others(model_dir: Path, folder: Path) -> None:
    for path in model_dir.iterdir():
        if _is_copied(path):
            shutil.copyfile(path, folder / path.name)


def _is_copied(path: Path) -> bool:
    return (
        path.is_file()
        and path.suffix in _COPIED_SUFFIXES
        and not path.name.startswith((".", "shplb_"))
        and path.name not in ("config.json", _INDEX_NAME)
    )
