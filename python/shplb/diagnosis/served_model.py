# SPDX-License-Identifier: Apache-2.0
"""What a server with ``--enable-shplb`` would refuse about a model, read from its folder."""

from shplb.calibration import is_readable
from shplb.diagnosis.finding import Finding, problem_of
from shplb.model import ModelShape, UnsupportedModelError, fingerprint, read_config
from shplb.plan import ServingPlan
from shplb.sglang.active_plan import cached_densities, cached_plan_path, local_model_dir


def check_model(model_path: str, tp_size: int) -> list[Finding]:
    """Architecture, sliding window, KV heads against ``tp_size``, quantisation, and whether a plan is cached."""
    folder = local_model_dir(model_path)
    if folder is None:
        fix = "download it first, or give its folder"
        return [Finding("model", "problem", f"{model_path} is not on this disk", fix)]
    try:
        config = read_config(folder)
        shape = ModelShape.from_config(config)
    except UnsupportedModelError as error:
        return [problem_of("model", error)]
    text = (
        f"{shape.architecture}, {shape.num_layers} layers, {shape.num_qo_heads} query / {shape.num_kv_heads} KV heads"
    )
    findings = [Finding("model", "ok", f"{text} of size {shape.head_dim}")]
    if shape.num_kv_heads % tp_size:
        wrong = f"{shape.num_kv_heads} KV heads can't be split over --tp {tp_size} in equal counts"
        sizes = [str(size) for size in range(1, shape.num_kv_heads + 1) if shape.num_kv_heads % size == 0]
        fix = f"use --tp {' or '.join(sizes)}, or pad the model with `shplb pad`"
        findings.append(Finding("model", "problem", wrong, fix))
    if quantisation := config.get("quantization_config"):
        method = (
            quantisation.get("quant_method", "an unknown method") if isinstance(quantisation, dict) else quantisation
        )
        wrong = f"weights are quantised by {method}, so the model can't be profiled and its heads can't be moved"
        findings.append(Finding("model", "problem", wrong, "serve the unquantised model"))
    if any(finding.level == "problem" for finding in findings):
        return findings
    identity = fingerprint(folder, config)
    cached = [
        Finding("model", "ok", f"plan for --tp {tp_size} cached at --shplb-density {density!r}")
        for density in cached_densities(identity, tp_size)
        if is_readable(ServingPlan, cached_plan_path(identity, tp_size, density))
    ]
    text = f"no plan for --tp {tp_size} is cached: the first start with --shplb-density profiles the model"
    none = Finding("model", "note", f"{text}, and without it or --shplb-plan it is served dense")
    return [*findings, *(cached or [none])]
