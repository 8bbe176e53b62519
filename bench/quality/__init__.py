# SPDX-License-Identifier: Apache-2.0
"""Parts of ``bench_quality.py``: what is asked of the servers, how, and what follows from the answers."""
