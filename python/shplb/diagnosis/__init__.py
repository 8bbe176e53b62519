# SPDX-License-Identifier: Apache-2.0
"""What is installed, patched, cached and supported here: probes that need neither a working torch nor SGLang.

Nothing of torch, SGLang or FlashInfer is imported into this process. A probe that fails is a finding, not an error.
"""

from shplb.diagnosis.examination import examine
from shplb.diagnosis.finding import Finding

__all__ = ["Finding", "examine"]
