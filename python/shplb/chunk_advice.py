# SPDX-License-Identifier: Apache-2.0
"""Whether prefill in longer chunks is predicted to shorten attention.

One CTA computes a whole page list. In a short chunk on a rank with few heads, there is too little other work beside the
longest list, and all CTAs but one wait for it. A longer chunk holds more work beside lists of the same length.
"""

from dataclasses import dataclass

from shplb.device import H200, Device
from shplb.plan import ServingPlan
from shplb.prediction import CHUNK_TOKENS, PromptPrediction, placed_ms

_LONGER = (2 * CHUNK_TOKENS, 4 * CHUNK_TOKENS)
#: Longer chunks make decoding requests wait longer, so less is not worth a word.
_LEAST_GAIN = 0.05


@dataclass(frozen=True)
class ChunkAdvice:
    """Predicted attention of a prompt of ``tokens`` in chunks of ``chunk_tokens``, and in chunks of 8192."""

    tokens: int
    chunk_tokens: int
    attention_ms: float
    usual_ms: float

    @property
    def text(self) -> str:
        """One sentence for people."""
        return (
            f"--chunked-prefill-size {self.chunk_tokens} is predicted to shorten attention of a prompt of "
            f"{self.tokens} tokens from {self.usual_ms:.1f} to {self.attention_ms:.1f} ms, since the longest page list "
            "then decides less; decoding requests wait longer for such a chunk"
        )


def advise_chunk(plan: ServingPlan, prediction: PromptPrediction, device: Device = H200) -> ChunkAdvice | None:
    """The best of 16384 and 32768 tokens for the predicted prompt; None where neither takes 5 % off."""
    tokens, usual = prediction.tokens, prediction.placed_ms
    found = [(placed_ms(plan, tokens, device, size), size) for size in _LONGER if size // 2 < tokens]
    if not found or min(found)[0] > (1.0 - _LEAST_GAIN) * usual:
        return None
    # The shortest chunk that comes close to the best, since others wait for it.
    best = min(found)[0]
    ms, size = next((ms, size) for ms, size in found if ms <= (1.0 + _LEAST_GAIN) * best)
    return ChunkAdvice(tokens, size, ms, usual)
