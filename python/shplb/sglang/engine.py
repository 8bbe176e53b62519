# SPDX-License-Identifier: Apache-2.0
"""A profiling run through SGLang's own engine, so that whatever SGLang loads can be profiled, at any TP size."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shplb.sglang.cpu import cpu_environment

# Prefill chunks that whole query blocks fill exactly at both block sizes (128 and 192 rows).
_CHUNK_TOKENS = 1536


def profile_documents(
    model_path: str,
    token_ids: dict[str, list[int]],
    folder: Path,
    *,
    tp_size: int,
    device: str,
    dtype: str,
) -> Iterator[str]:
    """Prefill each document densely; every rank writes its CurveSums into ``folder``. Yields names as they finish.

    ``folder`` must hold a saved ProfileRequest that names the documents.
    """
    if device == "cpu":
        os.environ.update(cpu_environment(tp_size))
    from sglang import Engine

    longest = max(map(len, token_ids.values()))
    options: dict[str, Any] = {"max_total_tokens": longest + 4096} if device == "cpu" else {}
    engine = Engine(
        model_path=model_path,
        tp_size=tp_size,
        device=device,
        dtype=dtype,
        enable_shplb=True,
        shplb_profile=str(folder),
        disable_radix_cache=True,
        chunked_prefill_size=_CHUNK_TOKENS,
        skip_tokenizer_init=True,
        skip_server_warmup=True,
        log_level="error",
        **options,
    )
    try:
        for name, tokens in token_ids.items():
            engine.generate(input_ids=tokens, sampling_params={"max_new_tokens": 1, "temperature": 0.0}, rid=name)
            yield name
    finally:
        engine.shutdown()
