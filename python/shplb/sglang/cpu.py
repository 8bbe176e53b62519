# SPDX-License-Identifier: Apache-2.0
"""What SGLang needs to be told to serve on a machine without a GPU."""

import os


def cpu_environment(tp_size: int) -> dict[str, str]:
    """Environment variables for ``--device cpu``: the CPU engine, no NCCL, and the cores dealt out to the ranks.

    With fewer cores than ranks, ranks share cores in turn.

    SGLang heeds ``SGLANG_CPU_OMP_THREADS_BIND`` only with AMX or on Arm. Elsewhere every rank would start one OpenMP
    thread per core, and more threads than cores wait for each other at the end of every operation: 3.7 times slower at
    two ranks on two cores. So the number of threads is given too.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= tp_size:
        size = len(cores) // tp_size
        shares = [cores[rank * size : (rank + 1) * size] for rank in range(tp_size)]
    else:
        shares = [[cores[rank % len(cores)]] for rank in range(tp_size)]
    return {
        "SGLANG_USE_CPU_ENGINE": "1",
        # A path that does not exist keeps SGLang from loading NCCL, which needs a driver.
        "SGLANG_NCCL_SO_PATH": "/nonexistent",
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, share)) for share in shares),
        "OMP_NUM_THREADS": str(min(map(len, shares))),
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def detect_device() -> str:
    """What ``--device auto`` means here: "cuda" where torch sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def count_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())
