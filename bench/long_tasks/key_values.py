# SPDX-License-Identifier: Apache-2.0
"""Key-value retrieval (Liu et al., "Lost in the Middle", arXiv 2307.03172): one value of a JSON object of UUIDs."""

import json
import random

from long_tasks.example import Message, Place
from long_tasks.needles import draw_uuid


def key_value_message(size: int, rng: random.Random, place: Place) -> Message:
    """``size`` pairs; the one asked for stands at the depth of ``place``."""
    key, value = draw_uuid(rng), draw_uuid(rng)
    depth = place.depth(rng)
    pairs = [(draw_uuid(rng), draw_uuid(rng)) for _ in range(size - 1)]
    pairs.insert(int(depth * size), (key, value))
    lines = ",\n ".join(f"{json.dumps(a)}: {json.dumps(b)}" for a, b in pairs)
    text = (
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{{{lines}}}\n\nKey: "{key}"'
    )
    return Message(text, "Corresponding value:", (value,), (f'"{key}": "{value}"',))
