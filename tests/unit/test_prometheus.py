# SPDX-License-Identifier: Apache-2.0
"""What a rank writes for ``/metrics``, read back as SGLang's main process does; ranks are processes of their own."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shplb.sglang import metrics

pytest.importorskip("prometheus_client")

# Loads of two ranks in two layers: 100 + 100 and 300 + 100, so mean/max is (200 + 100) / (300 + 100).
RANK = """
import sys
import numpy as np
from shplb.sglang.metrics import STEP_COUNTERS

LOADS = np.array([[100, 300], [100, 100]])

def start(rank):
    STEP_COUNTERS.start(2, export=True, rank=rank, labels={"model_name": "m", "zone": "z"}, plan="p")

def step(dense, plan_ns=0):
    STEP_COUNTERS.add_plan_ns(plan_ns)
    loads = LOADS * (not dense)
    STEP_COUNTERS.add_step(dense=dense, computed=100 if dense else 20, causal=100, placed=loads, contiguous=loads)

"""
OURS = {"model_name": "m", "zone": "z"}


def run_rank(folder: Path | None, code: str) -> None:
    env = {name: value for name, value in os.environ.items() if name.upper() != "PROMETHEUS_MULTIPROC_DIR"}
    if folder is not None:
        env["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    command = [sys.executable, "-c", RANK + textwrap.dedent(code)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def exported(folder: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, sorted labels) -> value of all that /metrics would show."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    found = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted({**OURS, **labels}.items()))


def test_two_ranks(tmp_path: Path) -> None:
    steps = "step(True, 1_000_000); step(False, 2_000_000); step(False)"
    for rank in (0, 1):
        run_rank(tmp_path, f"start({rank})\n{steps if rank == 0 else 'step(False, 500_000_000)'}")
    assert exported(tmp_path) == {
        key("shplb_density", tp_rank="0"): pytest.approx(140 / 300),
        key("shplb_density", tp_rank="1"): pytest.approx(0.2),
        key("shplb_sparse_steps_total", tp_rank="0"): 2,
        key("shplb_sparse_steps_total", tp_rank="1"): 1,
        key("shplb_dense_steps_total", tp_rank="0"): 1,
        key("shplb_dense_steps_total", tp_rank="1"): 0,
        key("shplb_plan_seconds_total", tp_rank="0"): pytest.approx(0.003),
        key("shplb_plan_seconds_total", tp_rank="1"): pytest.approx(0.5),
        key("shplb_rank_load_share", rank="0"): pytest.approx(200 / 300),
        key("shplb_rank_load_share", rank="1"): pytest.approx(400 / 300),
        key("shplb_balancedness"): pytest.approx(0.75),
    }


def test_no_loads_are_shown_before_the_first_sparse_step(tmp_path: Path) -> None:
    run_rank(tmp_path, "start(0); step(True)")
    names = {name for name, _ in exported(tmp_path)}
    assert {"shplb_density", "shplb_dense_steps_total", "shplb_sparse_steps_total"} <= names
    assert not {"shplb_rank_load_share", "shplb_balancedness"} & names


def test_drifts_and_speeds(tmp_path: Path) -> None:
    code = """
        for _ in range(4):
            STEP_COUNTERS.add_measured(np.ones((2, 2)), np.full((2, 2), 3.0), np.full((2, 2), 2_000_000))
            STEP_COUNTERS.add_shadow(np.tile([9.0, 0.1, 1.0, 9.2, 10.0], (2, 1)))
        STEP_COUNTERS.set_rank_speeds([0.95, 1.05])
        """
    for rank in (0, 1):
        run_rank(tmp_path, f"start({rank}){code}".replace("\n        ", "\n"))
    found = exported(tmp_path)
    assert found[key("shplb_attention_time_drift")] == pytest.approx(0.5)
    assert found[key("shplb_mass_drift")] == pytest.approx(-0.02)
    assert found[key("shplb_drift_out_of_band", drift="time")] == 1
    assert found[key("shplb_drift_out_of_band", drift="mass")] == 0
    assert [found[key("shplb_rank_speed", tp_rank=rank)] for rank in "01"] == [0.95, 1.05]
    assert found[key("shplb_shadow_mass_drift", layer="1")] == pytest.approx(-0.02)


def test_a_second_server_in_one_process_counts_on(tmp_path: Path) -> None:
    """Counters of Prometheus never fall, gauges are of the newest server."""
    run_rank(tmp_path, "start(0); step(False, 1_000_000_000); step(True); start(0); step(False, 1_000_000_000)")
    found = exported(tmp_path)
    assert found[key("shplb_sparse_steps_total", tp_rank="0")] == 2
    assert found[key("shplb_plan_seconds_total", tp_rank="0")] == pytest.approx(2)
    assert found[key("shplb_density", tp_rank="0")] == pytest.approx(0.2)


def test_nothing_is_loaded_unless_asked_for() -> None:
    run_rank(None, "STEP_COUNTERS.start(2, plan='p'); step(False); assert 'prometheus_client' not in sys.modules")


def test_without_prometheus_client() -> None:
    run_rank(
        None,
        """
        sys.modules["prometheus_client"] = None
        start(0)
        step(False)
        assert STEP_COUNTERS.exporter is None
        assert STEP_COUNTERS.report()["sparse_steps"] == 1
        """,
    )


def test_without_labels_and_without_a_folder() -> None:
    """Outside a server values stay in the process; the report is the same with and without an exporter."""
    reports = []
    for export in (False, True):
        counters = metrics.StepCounters()
        counters.start(1, export=export, plan="p")
        assert (counters.exporter is not None) == export
        loads = np.array([[3], [4]])
        counters.add_step(dense=False, computed=1, causal=2, placed=loads, contiguous=loads)
        reports.append(counters.report())
    assert reports[0] == reports[1]


def test_the_backend_exports_under_names_of_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sglang")
    from sglang.srt.server_args import ServerArgs

    from shplb.sglang import backend

    asked: dict[str, Any] = {}
    plan = SimpleNamespace(tp_size=2, hash="hash", density=0.25, objective="min_error")
    monkeypatch.setattr(backend, "load_plan", lambda path: plan)
    monkeypatch.setattr(backend, "check_same_plan", lambda digest, runner: None)
    monkeypatch.setattr(backend, "make_engine", lambda plan, runner: object())
    monkeypatch.setattr(backend.STEP_COUNTERS, "start", lambda tp_size, **rest: asked.update(rest))
    fields = {"enable_metrics": True, "served_model_name": "m", "extra_metric_labels": None}
    assert set(fields) <= {field.name for field in dataclasses.fields(ServerArgs)}
    args = SimpleNamespace(shplb_plan="p", page_size=64, **fields)
    backend.SparsePrefillMixin().start_shplb(SimpleNamespace(server_args=args, tp_rank=1))
    assert (asked["export"], asked["rank"], asked["labels"]) == (True, 1, {"model_name": "m"})
    args.enable_metrics, args.extra_metric_labels = False, {"zone": "z"}
    backend.SparsePrefillMixin().start_shplb(SimpleNamespace(server_args=args, tp_rank=0))
    assert (asked["export"], asked["labels"]) == (False, {"model_name": "m", "zone": "z"})
