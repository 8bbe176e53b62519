# SPDX-License-Identifier: Apache-2.0
"""Head placement: permute whole KV groups, layer by layer, in the stream of weights before SGLang shards it.

A KV group is head_dim rows of k_proj and v_proj, group_size * head_dim rows of q_proj and as many columns of o_proj.
RoPE, q_norm and k_norm act per head, so nothing else changes, and the model's function stays the same.

A replica's rows go to two slots, and the o_proj columns of both are halved (exact in binary floating point but for
subnormals): whoever computes both copies, as every stock path does, adds up the whole. SGLang builds the model for all
slots, since the config's head counts grow (``ServingPlan.served_heads``).
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from shplb.plan import ServingPlan, expand_groups
from shplb.sglang.active_plan import load_plan
from shplb.sglang.checkpoint import Projection, check_complete, check_shape, projection_of
from shplb.sglang.refusal import StartRefusedError

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
        seen: set[Projection] = set()
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


def place_weights(weights: Weights, plan: ServingPlan, seen: set[Projection]) -> Iterator[tuple[str, Any]]:
    """Yield the same names with KV groups permuted; notes in ``seen`` which (layer, projection, kind) passed."""
    for name, tensor in weights:
        projection = projection_of(name)
        if projection is None:
            yield name, tensor
            continue
        seen.add(projection)
        if projection[1:] == ("o", "bias"):  # added once to the sum over heads, so it belongs to no head
            yield name, tensor
        else:
            placed = permute_heads(tensor, name, projection, plan)
            layer, what, _ = projection
            yield name, halve_copies(placed, plan, layer) if what == "o" and plan.replicas else placed


def permute_heads(tensor: torch.Tensor, name: str, projection: Projection, plan: ServingPlan) -> torch.Tensor:
    """``tensor`` with the heads along its head axis (columns for o_proj, else rows) in the order of the plan."""
    axis = check_shape(name, tensor.shape, projection, plan)
    groups: np.ndarray = plan.physical_to_logical[projection[0]]
    heads = expand_groups(groups, plan.model.group_size) if projection[1] in "qo" else groups
    index = expand_groups(heads, plan.model.head_dim)
    return tensor.index_select(axis, torch.from_numpy(index.astype(np.int64)).to(tensor.device))


def halve_copies(columns: torch.Tensor, plan: ServingPlan, layer: int) -> torch.Tensor:
    """o_proj [hidden_size, heads of all slots * head_dim], with the columns of copied groups halved in place."""
    copied = np.repeat(plan.copied[layer], plan.model.group_size * plan.model.head_dim)
    columns[:, torch.from_numpy(copied).to(columns.device)] *= 0.5
    return columns
