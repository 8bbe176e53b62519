# SPDX-License-Identifier: Apache-2.0
"""A profiling run through SGLang's own engine, so that whatever SGLang loads can be profiled, at any TP size.

Runs as ``python -m shplb.sglang.profile_worker FOLDER``, in a process of its own: when a rank fails, SGLang kills its
whole process tree, and the caller should live to say so.
"""

import os
import sys
from pathlib import Path
from typing import Any

from shplb.recording import ProfileJob

# Prefill chunks that whole query blocks fill exactly at both block sizes (128 and 192 rows). On a GPU long ones, since
# dense prefill of short ones is slow, and all blocks of a chunk are measured at once.
CHUNK_TOKENS = {"cuda": 7680, "cpu": 1536}
# SGLang wants room for an answer, also where a document fills the model's context.
_ROOM_TOKENS = 8
_POOL_ROOM_TOKENS = 4096
# Of GPU memory, for weights and the KV pool. SGLang would set aside memory for chunks by their length alone, and refuse
# a model that fills a small GPU; here the pool is one document, so what is left is more than that.
_MEMORY_SHARE = {"cuda": 0.88, "cpu": None}

# SGLang ends an engine whose batch takes 300 s, which a measured chunk on a busy CPU does. Who waits sees the progress,
# and a calibration at start has a limit of its own.
_WATCHDOG_S = 24 * 3600.0


def engine_options(job: ProfileJob, folder: Path) -> dict[str, Any]:
    """Arguments of ``sglang.Engine`` under which it records the documents of a job into ``folder``."""
    longest = max(map(len, job.documents.values()))
    return {
        "model_path": job.model_path,
        "tp_size": job.tp_size,
        "device": job.device,
        "dtype": job.dtype,
        "attention_backend": job.attention_backend or None,
        "context_length": longest + _ROOM_TOKENS,
        # No more than one document needs: the rest of the memory is for what measures it.
        "max_total_tokens": longest + _POOL_ROOM_TOKENS,
        "mem_fraction_static": _MEMORY_SHARE[job.device],
        "enable_shplb": True,
        "shplb_profile": str(folder),
        "disable_radix_cache": True,
        "disable_cuda_graph": True,
        "chunked_prefill_size": CHUNK_TOKENS[job.device],
        "skip_tokenizer_init": True,
        "skip_server_warmup": True,
        "watchdog_timeout": _WATCHDOG_S,
        "log_level": "warning",
    }


def prefill(engine: Any, name: str, tokens: list[int]) -> None:
    """One document through an engine, as the request of its name."""
    engine.generate(input_ids=tokens, sampling_params={"max_new_tokens": 1, "temperature": 0.0}, rid=name)


def run(folder: Path) -> None:
    """Prefill the job's documents densely; every rank writes its CurveSums into ``folder``."""
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    from sglang import Engine

    job = ProfileJob.load(folder)
    engine = Engine(**engine_options(job, folder))
    for name, tokens in job.documents.items():
        prefill(engine, name, tokens)
        job.mark_done(folder, name)
    engine.shutdown()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
