# SPDX-License-Identifier: Apache-2.0
"""Why the sm90 kernel can't be built or used is one sentence, and names the cause."""

from types import SimpleNamespace

import pytest
import torch

from shplb.kernels import flashinfer_sm90 as sm90

NINJA = "Ninja build failed. Output:\nfoo.cu:3:10: fatal error: curand_kernel.h: No such file\nninja: build stopped: x."


@pytest.mark.parametrize(
    ("output", "reason"), [(NINJA, "curand_kernel.h"), ("no nvcc", "no nvcc"), ("", "RuntimeError")]
)
def test_a_failed_build_names_its_cause(output: str, reason: str) -> None:
    def build(verbose: bool) -> None:
        raise RuntimeError(output)

    with pytest.raises(sm90.KernelUnavailableError, match=rf"can't be compiled \(.*{reason}.*\); install") as caught:
        sm90._build(SimpleNamespace(build=build))
    assert "\n" not in str(caught.value)


def test_what_has_no_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sm90.KernelUnavailableError, match=r"torch\.float32 and head_dim 128"):
        sm90.jit_spec(torch.float32, 128)
    with pytest.raises(sm90.KernelUnavailableError, match="head_dim 96"):
        sm90.jit_spec(torch.bfloat16, 96)
    with pytest.raises(sm90.KernelUnavailableError, match=r"no GPU of compute capability 9\.0"):
        sm90.Sm90Prefill(torch.bfloat16, 128, torch.device("cpu"))
    monkeypatch.setattr(sm90, "version", lambda name: "0.7.0")
    with pytest.raises(
        sm90.KernelUnavailableError, match=r"FlashInfer 0\.7\.0 is installed.*0\.6\.12; install that one"
    ):
        sm90.jit_spec(torch.bfloat16, 128)
