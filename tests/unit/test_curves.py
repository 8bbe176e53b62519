# SPDX-License-Identifier: Apache-2.0
"""Profile curves equal what a direct computation with masked attention and o_proj gives."""

import torch
from oracle import masked_attention

from shplb.kernels.curves import block_curves, block_sensitivity, page_partials


def test_curves_equal_direct_computation() -> None:
    generator = torch.Generator().manual_seed(0)
    kv_heads, group, dim, hidden, first, end = 2, 2, 32, 48, 300, 345
    q = torch.randn(kv_heads, group, end - first, dim, generator=generator)
    k, v = torch.randn(2, kv_heads, end, dim, generator=generator)
    weight = torch.randn(kv_heads * group, hidden, dim, generator=generator)
    mass, partial = page_partials(q, k, v, torch.arange(first, end), dim**-0.5)
    order = torch.stack([torch.randperm(6, generator=generator) for _ in range(4)])
    # Diagonal pages first, as in real use: every row must keep a page that it can see.
    order = torch.stack([torch.cat([torch.tensor([4, 5]), row[row < 4]]) for row in order])
    counts = [2, 3, 6]
    gram = torch.einsum("hod,hoe->hde", weight, weight)
    recovery, error = block_curves(mass.flatten(0, 1), partial.flatten(0, 1), order, counts, gram)
    gradient = torch.randn(kv_heads * group, end - first, dim, generator=generator)
    loss = block_sensitivity(mass.flatten(0, 1), partial.flatten(0, 1), order, counts, gradient)
    for head in range(4):
        query, keys, values = q.flatten(0, 1)[head], k[head // group], v[head // group]
        dense = masked_attention(query, keys, values, first, list(range(6)), dim**-0.5)
        for point, count in enumerate(counts):
            pages = order[head, :count].tolist()
            sparse = masked_attention(query, keys, values, first, pages, dim**-0.5)
            direct = ((sparse - dense) @ weight[head].double().T).pow(2).sum()
            torch.testing.assert_close(error[head, point], direct, rtol=1e-3, atol=1e-4)
            change = ((sparse - dense) * gradient[head].double()).sum(dim=1).pow(2).sum()
            torch.testing.assert_close(loss[head, point], change, rtol=1e-3, atol=1e-5)
            logits = (query.double() @ keys.double().T * dim**-0.5).masked_fill(
                torch.arange(end)[None] > torch.arange(first, end)[:, None], float("-inf")
            )
            kept = torch.isin(torch.arange(end) // 64, torch.tensor(pages))
            expected = torch.softmax(logits, -1)[:, kept].sum()
            torch.testing.assert_close(recovery[head, point], expected, rtol=1e-5, atol=1e-5)
    assert torch.all(error[:, -1] < 1e-6)
