# SPDX-License-Identifier: Apache-2.0
"""Head placement: permute whole KV groups, layer by layer, in the stream of weights before SGLang shards it.

A KV group is head_dim rows of k_proj and v_proj, group_size * head_dim rows of q_proj and as many columns of o_proj.
RoPE, q_norm and k_norm act per head, so nothing else changes, and the model's function stays the same.

A replica's rows go to two slots, and the o_proj columns of both are halved (exact in binary floating point but for
subnormals): whoever computes both copies, as every stock path does, adds up the whole. SGLang builds the model for all
slots, since the config's head counts grow (``ServingPlan.served_heads``).
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from shplb.plan import ServingPlan, expand_groups
from shplb.sglang.active_plan import load_plan
from shplb.sglang.refusal import StartRefusedError

_PROJECTION = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.([qkvo])_proj\.(.+)$")
_FUSED = re.compile(r"\.self_attn\.qkv_proj\.")

Weights = Iterable[tuple[str, torch.Tensor]]


def install_head_placement(model: torch.nn.Module, model_config: Any) -> None:
    """Make ``model.load_weights`` place KV groups as the active plan says; called once per constructed model.

    Wrapping the instance covers the first load and later online updates, which use the same method. Draft models
    are left alone.
    """
    from sglang.srt.server_args import get_global_server_args

    args = get_global_server_args()
    if args.shplb_profile is not None or getattr(model_config, "is_draft_model", False):
        return
    plan = load_plan(args.shplb_plan)
    if not plan.permutes:
        return
    load: Callable[[Weights], Any] = model.load_weights
    first_load = True

    @functools.wraps(load)
    def load_placed(weights: Weights, *rest: Any, **options: Any) -> Any:
        nonlocal first_load
        seen: set[tuple[int, str, str]] = set()
        try:
            result = load(place_weights(weights, plan, seen), *rest, **options)
            if first_load:
                check_complete(seen, plan.model.num_layers)
        except StartRefusedError as error:
            if first_load:
                raise
            # SGLang answers a failed online update with an error and goes on serving; a SystemExit would end the rank.
            raise ValueError(str(error)) from None
        first_load = False
        return result

    model.load_weights = load_placed


def place_weights(weights: Weights, plan: ServingPlan, seen: set[tuple[int, str, str]]) -> Iterator[tuple[str, Any]]:
    """Yield the same names with KV groups permuted; notes in ``seen`` which (layer, projection, kind) passed."""
    for name, tensor in weights:
        if _FUSED.search(name):
            raise StartRefusedError(f"weight {name} is fused, expected separate q_proj, k_proj and v_proj.")
        found = _PROJECTION.search(name)
        if found is None:
            yield name, tensor
            continue
        layer, projection, kind = int(found[1]), found[2], found[3]
        if kind not in ("weight", "bias"):  # packed values and scales, whose heads lie elsewhere
            raise StartRefusedError(f"weight {name} is quantised, expected plain weights and biases.")
        seen.add((layer, projection, kind))
        if projection == "o" and kind == "bias":  # added once to the sum over heads, so it belongs to no head
            yield name, tensor
        else:
            placed = permute_heads(tensor, name, projection, plan, layer)
            yield name, halve_copies(placed, plan, layer) if projection == "o" and plan.replicas else placed


def permute_heads(tensor: torch.Tensor, name: str, projection: str, plan: ServingPlan, layer: int) -> torch.Tensor:
    """``tensor`` with the heads along its head axis (columns for o_proj, else rows) in the order of the plan."""
    model, axis = plan.model, 1 if projection == "o" else 0
    if layer >= model.num_layers:
        raise StartRefusedError(f"the plan has {model.num_layers} layers, weight {name} belongs to one more.")
    groups: np.ndarray = plan.physical_to_logical[layer]
    heads = expand_groups(groups, model.group_size) if projection in "qo" else groups
    expected = (model.num_qo_heads if projection in "qo" else model.num_kv_heads) * model.head_dim
    if tensor.dim() <= axis or tensor.shape[axis] != expected:
        raise StartRefusedError(
            f"weight {name} has shape {list(tensor.shape)}, the plan expects {expected} entries along axis {axis}; "
            "make a plan for this checkpoint."
        )
    index = expand_groups(heads, model.head_dim)
    return tensor.index_select(axis, torch.from_numpy(index.astype(np.int64)).to(tensor.device))


def halve_copies(columns: torch.Tensor, plan: ServingPlan, layer: int) -> torch.Tensor:
    """o_proj [hidden_size, heads of all slots * head_dim], with the columns of copied groups halved in place."""
    copied = np.repeat(plan.copied[layer], plan.model.group_size * plan.model.head_dim)
    columns[:, torch.from_numpy(copied).to(columns.device)] *= 0.5
    return columns


def check_complete(seen: set[tuple[int, str, str]], num_layers: int) -> None:
    """Every layer must have passed all four projections, or some heads would be placed and others not."""
    missing = [f"layers.{i}.{p}_proj" for i in range(num_layers) for p in "qkvo" if (i, p, "weight") not in seen]
    if missing:
        raise StartRefusedError(
            f"the checkpoint lacks {missing[0]} ({len(missing)} such weights in all); "
            "the plan can't be applied to a checkpoint with other weight names."
        )
