# SPDX-License-Identifier: Apache-2.0
"""A server that is given no plan: dense, or one of a density that is cached, made, failed, or too late."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("sglang")

from server_arguments import plan_of, refusal, server_args
from synthetic import is_one_sentence

from shplb.model import fingerprint

pytestmark = pytest.mark.usefixtures("server_environment")


def test_cached_plan_and_failed_calibration(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shplb import calibration
    from shplb.sglang.active_plan import cached_plan_path

    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "cache"))

    def fail(*args: object, **options: object) -> None:
        raise calibration.CalibrationError("calibration said no.")

    monkeypatch.setattr(calibration, "calibrate", fail)
    assert "calibration said no" in refusal(llama, shplb_density=0.5)
    path = cached_plan_path(fingerprint(llama), 1, 0.5)
    plan_of(llama).save(path)
    args = server_args(llama, shplb_density=0.5)
    assert args.shplb_plan == dataclasses.replace(args).shplb_plan == str(path)
    refusal(llama, shplb_density=0.25)


def test_dense_where_nothing_says_how_much(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where a plan of some density is cached: which one would be a guess."""
    from shplb.sglang.active_plan import cached_plan_path

    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "cache"))
    plan_of(llama).save(cached_plan_path(fingerprint(llama), 1, 0.5))
    args = server_args(llama, shplb_trace=str(tmp_path / "trace"))
    stock = server_args(llama, enable_shplb=False)
    for found in (args, dataclasses.replace(args)):
        assert not found.enable_shplb
        assert found.shplb_plan is None
        assert found.page_size == stock.page_size
    (warning,) = [record.getMessage() for record in caplog.records if "S-HPLB" in record.getMessage()]
    assert "give --shplb-plan or --shplb-density" in warning
    assert is_one_sentence(warning)


def test_a_plan_that_takes_too_long(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server starts as stock, with one warning; nothing of the child is left."""
    monkeypatch.setenv("SHPLB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SHPLB_CALIBRATION_S", "0")
    args = server_args(llama, shplb_density=0.5, shplb_trace=str(tmp_path / "trace"))
    assert not args.enable_shplb
    assert args.shplb_plan is None
    assert not dataclasses.replace(args).enable_shplb
    (warning,) = [record.getMessage() for record in caplog.records if "S-HPLB" in record.getMessage()]
    assert "serving without it: `shplb profile --model-path" in warning
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
