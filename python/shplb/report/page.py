# SPDX-License-Identifier: Apache-2.0
"""Puts the figures, tables and facts into one HTML file that needs nothing but itself."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from shplb.container import write_atomically
from shplb.model import ModelShape
from shplb.plan import ServingPlan
from shplb.profile import HeadProfile
from shplb.report.benches import read_bench
from shplb.report.sections import (
    curve_section,
    load_section,
    map_section,
    scatter_section,
    stability_section,
    timeline_section,
)
from shplb.report.svg import clean

MAX_BYTES = 5_000_000


class ReportError(ValueError):
    """A report that can't be made; the message is one sentence."""


def make_report(
    plan: ServingPlan, profile: HeadProfile | None = None, benches: Sequence[Path] = (), *, out: Path
) -> None:
    """Write the report of ``plan`` to ``out``, atomically: one HTML file below 5 MB, without network access.

    Args:
        plan: what is shown.
        profile: the profile the plan was made from, or another of the same model; adds needed densities, curves and
            stability.
        benches: JSON files; every list of objects in them becomes a table.
        out: file to write, in a folder that exists.

    Raises:
        ReportError: profile of another model, no such folder, or a page that gets too large.
        BenchFileError: a bench file that can't be read.
    """
    if not out.parent.is_dir():
        raise ReportError(f"there is no folder {out.parent} to write {out.name} into: create it or choose another one.")
    if out.is_dir():
        raise ReportError(f"{out} is a folder: give the name of an HTML file to write.")
    if profile is not None:
        _check_same_model(plan, profile)
    page = _render(_context(plan, profile, benches)).encode()
    if len(page) > MAX_BYTES:
        raise ReportError(
            f"the report would have {len(page) / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB: give fewer or "
            "smaller bench files."
        )
    write_atomically(out, page)


def _check_same_model(plan: ServingPlan, profile: HeadProfile) -> None:
    if plan.fingerprint.conflicts(profile.fingerprint):
        raise ReportError(
            f"the plan is for a model with fingerprint {plan.fingerprint.config[:12]}/{plan.fingerprint.weights[:12]}, "
            f"the profile is of {profile.fingerprint.config[:12]}/{profile.fingerprint.weights[:12]}: give the profile "
            "that the plan was made from."
        )
    if plan.model != profile.model:
        raise ReportError(
            f"the plan is for {_shape(plan.model)}, the profile is of {_shape(profile.model)}: give the profile that "
            "the plan was made from."
        )


def _shape(model: ModelShape) -> str:
    return f"{model.num_layers} layers of {model.num_qo_heads} query and {model.num_kv_heads} KV heads"


def _context(plan: ServingPlan, profile: HeadProfile | None, benches: Sequence[Path]) -> dict[str, Any]:
    loads, timeline = load_section(plan), timeline_section(plan)
    maps = map_section(plan, profile)
    return {
        "title": f"{plan.model.architecture}, TP {plan.tp_size}, density {plan.density:g}",
        "tiles": _tiles(plan, loads, timeline),
        "plan_facts": _plan_facts(plan),
        "hashes": _hashes(plan, profile),
        "notes": _notes(plan, profile),
        "loads": loads,
        "num_inert": len(plan.model.inert_kv_heads),
        "maps": maps,
        "pair_maps": not any(item["wide"] for item in maps),
        "curves": curve_section(profile) if profile else [],
        "stability": stability_section(profile) if profile else None,
        "scatters": scatter_section(profile) if profile else [],
        "timeline": timeline if "drawing" in timeline else None,
        "no_timeline": timeline.get("reason", ""),
        "benches": [read_bench(path) for path in benches],
        "documents": profile.documents if profile else (),
    }


def _plan_facts(plan: ServingPlan) -> list[tuple[str, str]]:
    model, rule = plan.model, plan.rule
    padding = f", {len(model.inert_kv_heads)} of them padding" if model.inert_kv_heads else ""
    tail = f", and the last {rule.dense_tail_tokens} of a prompt" if rule.dense_tail_tokens else ""
    return [
        ("model", f"{model.architecture}, {model.num_layers} layers, {model.num_qo_heads} query heads, "
                  f"{model.num_kv_heads} KV heads{padding}, head_dim {model.head_dim}"),
        ("tensor-parallel ranks", str(plan.tp_size)),
        ("budgets", f"objective {plan.objective}, one total per {plan.scope}, mean density "
                    f"{plan.density:g}"),
        ("lengths", f"{', '.join(map(str, plan.lengths.tolist()))} tokens"),
        ("always kept", f"{rule.sink_pages} sink page(s), the diagonal, {rule.local_pages} page(s) before it; at least "
                        f"{rule.floor_pages} pages; dense up to {rule.dense_below_tokens} tokens{tail}"),
        ("order of heads", "changed by placement" if plan.permutes else "the model's own"),
    ]  # fmt: skip


def _hashes(plan: ServingPlan, profile: HeadProfile | None) -> list[tuple[str, str]]:
    pairs = [
        ("plan", plan.hash),
        ("profile of the plan", plan.profile_hash),
        ("model config", plan.fingerprint.config),
        ("model weights", plan.fingerprint.weights or "unknown"),
        ("plan made by", _versions(plan.versions)),
    ]
    if profile is not None:
        pairs += [("documents", profile.documents_hash), ("profile made by", _versions(profile.versions))]
    return [*pairs, ("report made by", f"shplb {version('shplb')}")]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))


def _notes(plan: ServingPlan, profile: HeadProfile | None) -> list[str]:
    if profile is None:
        return ["No profile was given: needed densities, curves and stability are left out."]
    # The hash that planning puts into a plan.
    if plan.profile_hash != profile.curves_hash:
        return ["The profile shown is of this model, but not the one that the plan was made from."]
    return []


# Of rank loads without replicas: contiguous, placed, lower bound.
_WHOLE_ROWS = 3


def _tiles(plan: ServingPlan, loads: dict[str, Any] | None, timeline: dict[str, Any]) -> list[dict[str, str]]:
    tiles = [{"key": "density", "value": f"{plan.density:g}", "label": "mean density asked for"}]
    if loads:
        before, *_, after, bound = (row["imbalance"] for row in loads["rows"])
        last = "replicas" if len(loads["rows"]) > _WHOLE_ROWS else "placed"
        tiles += [
            {
                "key": "imbalance",
                "value": f"{before} \u2192 {after}",
                "label": f"imbalance, contiguous to {last}",
            },
            {"key": "bound", "value": bound, "label": "imbalance, lower bound"},
        ]
        if "rows" in timeline:
            before, after = (row["bubble"] for row in timeline["rows"])
            tiles += [{"key": "bubble", "value": f"{before} \u2192 {after}", "label": "bubbles in the step below"}]
    return tiles


def _render(context: Mapping[str, Any]) -> str:
    folder = files("shplb.report")
    template, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html.j2", "page.css", "page.js")
    )
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        context, style=Markup(style), script=Markup(script), script_hash=Markup(digest)
    )
