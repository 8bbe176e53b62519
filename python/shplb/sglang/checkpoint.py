# SPDX-License-Identifier: Apache-2.0
"""Which weights of a checkpoint hold heads, and what a plan that moves heads expects of them.

Checked twice: from the headers of the files before any rank starts, so that a refusal is one sentence, and again in the
stream of weights, for checkpoints that are not safetensors on this disk.
"""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from shplb.plan import ServingPlan
from shplb.sglang.refusal import StartRefusedError

_PROJECTION = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.([qkvo])_proj\.(.+)$")
_FUSED = re.compile(r"\.self_attn\.qkv_proj\.")

#: (layer, one of "qkvo", "weight" or "bias")
Projection = tuple[int, str, str]


def projection_of(name: str) -> Projection | None:
    """What ``name`` holds of attention, None for other weights; StartRefusedError for a form that can't be permuted."""
    if _FUSED.search(name):
        raise StartRefusedError(f"weight {name} is fused, expected separate q_proj, k_proj and v_proj.")
    found = _PROJECTION.search(name)
    if found is None:
        return None
    if found[3] not in ("weight", "bias"):  # packed values and scales, whose heads lie elsewhere
        raise StartRefusedError(f"weight {name} is quantised, expected plain weights and biases.")
    return int(found[1]), found[2], found[3]


def check_shape(name: str, shape: Sequence[int], projection: Projection, plan: ServingPlan) -> int:
    """The axis along which heads lie (columns for o_proj, else rows); StartRefusedError unless they are the plan's."""
    layer, which, _ = projection
    model, axis = plan.model, 1 if which == "o" else 0
    if layer >= model.num_layers:
        raise StartRefusedError(f"the plan has {model.num_layers} layers, weight {name} belongs to one more.")
    expected = (model.num_qo_heads if which in "qo" else model.num_kv_heads) * model.head_dim
    if len(shape) <= axis or shape[axis] != expected:
        raise StartRefusedError(
            f"weight {name} has shape {list(shape)}, the plan expects {expected} entries along axis {axis}; "
            "make a plan for this checkpoint."
        )
    return axis


def check_complete(seen: Collection[Projection], num_layers: int) -> None:
    """Every layer must have passed all four projections, or some heads would be placed and others not."""
    missing = [f"layers.{i}.{p}_proj" for i in range(num_layers) for p in "qkvo" if (i, p, "weight") not in seen]
    if missing:
        raise StartRefusedError(
            f"the checkpoint lacks {missing[0]} ({len(missing)} such weights in all); "
            "the plan can't be applied to a checkpoint with other weight names."
        )


def check_checkpoint(folder: Path, plan: ServingPlan) -> None:
    """Check names and shapes in the headers of the safetensors files in ``folder``; nothing where there are none."""
    files = _weight_files(folder)
    seen = set()
    for path in files:
        try:
            with safe_open(path, framework="numpy") as stream:
                for name in stream.keys():  # noqa: SIM118 (not a mapping)
                    projection = projection_of(name)
                    if projection is None:
                        continue
                    seen.add(projection)
                    if projection[1:] != ("o", "bias"):
                        check_shape(name, stream.get_slice(name).get_shape(), projection, plan)
        except (OSError, SafetensorError) as error:
            raise StartRefusedError(f"{path} can't be read ({error}); download the model again.") from None
    if files:
        check_complete(seen, plan.model.num_layers)


def _weight_files(folder: Path) -> list[Path]:
    """Those that the index names, else all: folders may hold the same weights in another form, too."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted(folder.glob("*.safetensors"))
