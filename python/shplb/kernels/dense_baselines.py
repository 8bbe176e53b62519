# SPDX-License-Identifier: Apache-2.0
"""Dense prefill attention of a trial step as stock SGLang runs it, to be timed against ours."""

from collections.abc import Callable

import torch

from shplb.kernels.flashinfer_sm90 import paged
from shplb.kernels.trial import Pool, Shape, Step
from shplb.sparsity import PAGE_SIZE

_WORKSPACE_BYTES = 512 << 20


class UnavailableError(Exception):
    """This baseline's library is not on this machine."""


def fa3(shape: Shape, step: Step, pool: Pool) -> Callable[[], object]:
    """sgl-kernel's FlashAttention 3, SGLang's default on Hopper; over pages of 64, a stock server has pages of 1."""
    try:
        from sgl_kernel.flash_attn import flash_attn_with_kvcache  # type: ignore[import-untyped]
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise UnavailableError(f"sgl_kernel's fa3 can't be loaded ({type(error).__name__})") from None
    table = (pool.req_to_token[:, ::PAGE_SIZE] // PAGE_SIZE).contiguous()
    tokens = step.prefix + step.new
    lens = torch.tensor([tokens], dtype=torch.int32, device=pool.q.device)
    q_starts = torch.tensor([0, step.new], dtype=torch.int32, device=pool.q.device)
    k_starts = torch.tensor([0, tokens], dtype=torch.int32, device=pool.q.device)

    def call() -> object:
        return flash_attn_with_kvcache(
            q=pool.q, k_cache=paged(pool.k), v_cache=paged(pool.v), page_table=table, cache_seqlens=lens,
            cu_seqlens_q=q_starts, cu_seqlens_k_new=k_starts, max_seqlen_q=step.new,
            softmax_scale=shape.head_dim**-0.5, causal=True,
        )  # fmt: skip

    try:
        call()
        torch.cuda.synchronize()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        raise UnavailableError(f"sgl_kernel's fa3 does not run ({str(error).splitlines()[0]})") from None
    return call


def _paged_wrapper(shape: Shape, step: Step, pool: Pool, backend: str, page_size: int) -> Callable[[], object]:
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    tokens = step.prefix + step.new
    pages = (pool.req_to_token[0, ::page_size] // page_size)[: -(-tokens // page_size)].contiguous()
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=pool.q.device)
    wrapper = BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
    last = (tokens - 1) % page_size + 1
    wrapper.plan(
        torch.tensor([0, step.new], dtype=torch.int32), torch.tensor([0, len(pages)], dtype=torch.int32), pages,
        torch.tensor([last], dtype=torch.int32), shape.num_qo_heads, shape.num_kv_heads, shape.head_dim, page_size,
        causal=True, q_data_type=pool.q.dtype, kv_data_type=pool.q.dtype,
    )  # fmt: skip
    kv = tuple(x.view(-1, page_size, shape.num_kv_heads, shape.head_dim) for x in (pool.k, pool.v))
    out = torch.empty_like(pool.q)
    return lambda: wrapper.run(pool.q, kv, out=out)


def flashinfer_stock(shape: Shape, step: Step, pool: Pool) -> Callable[[], object]:
    """SGLang's flashinfer backend: fa2, token by token."""
    return _paged_wrapper(shape, step, pool, "fa2", 1)


def flashinfer_sm90(shape: Shape, step: Step, pool: Pool) -> Callable[[], object]:
    """FlashInfer's sm90 kernel over pages of 64, under FlashInfer's own plan."""
    return _paged_wrapper(shape, step, pool, "fa3", PAGE_SIZE)


#: By SGLang's name of the attention backend.
STOCK: dict[str, Callable[[Shape, Step, Pool], Callable[[], object]]] = {"fa3": fa3, "flashinfer": flashinfer_stock}
