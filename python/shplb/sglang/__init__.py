# SPDX-License-Identifier: Apache-2.0
"""Integration with SGLang 0.5.15.post1: the only package of shplb that imports sglang.

The patched SGLang calls ``server_args.resolve_defaults`` and ``check_supported`` (main process),
``weights.install_head_placement`` (model loader) and ``backend.wrap_attn_backend`` (every rank).
"""

SGLANG_VERSION = "0.5.15.post1"
