# SPDX-License-Identifier: Apache-2.0
"""First on the path of every process that tests start: collecting garbage while SGLang imports is a quarter of it."""

import gc

gc.set_threshold(200_000)
