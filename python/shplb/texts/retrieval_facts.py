# SPDX-License-Identifier: Apache-2.0
"""Wording and keys of retrieval prompts: nothing is shared between the two splits."""

import random

import msgspec

from shplb.texts.library import Split


class Wording(msgspec.Struct, frozen=True):
    """Format strings with ``{key}``, ``{number}``, ``{text}`` and ``{question}``; ``lead_in`` opens the reply.

    A key is one of ``things`` with one of ``places``.
    """

    prompt: str
    fact: str
    question: str
    lead_in: str
    things: tuple[str, ...]
    places: tuple[str, ...]

    def keys(self, count: int, rng: random.Random) -> list[str]:
        """Return ``count`` keys that differ in thing and in place; a small model confuses keys of equal things."""
        pairs = zip(rng.sample(self.things, count), rng.sample(self.places, count), strict=True)
        return [thing.format(place=place) for thing, place in pairs]


WORDING: dict[Split, Wording] = {
    "calibration": Wording(
        prompt="Read the following text and remember the numbers in it.\n\n{text}\n\n{question}",
        fact="Please note that the {key} is {number}.",
        question="According to the text, what is the {key}?",
        lead_in="The {key} is",
        things=(
            "order number of the {place} warehouse",
            "serial number of the {place} engine",
            "account number of the {place} bank",
            "flight number of the {place} plane",
            "ticket number of the {place} concert",
            "patent number of the {place} inventor",
        ),
        places=(
            *("Aachen", "Bordeaux", "Calgary", "Dundee", "Eindhoven", "Fresno", "Gdansk", "Havana", "Innsbruck"),
            *("Jakarta", "Kyoto", "Leipzig", "Malaga", "Nairobi", "Osaka", "Porto", "Quebec", "Rotterdam", "Turin"),
        ),
    ),
    "held_out": Wording(
        # Asked before and after: knowing what to look for, a small model mixes up the numbers less often.
        prompt="{question} The answer is in the following text.\n\n{text}\n\nThat was the text. {question}",
        fact="The {key} is {number}.",
        question="What is the {key}?",
        lead_in="The {key} is",
        things=(
            "access code of the {place} office",
            "phone extension of the {place} museum",
            "locker combination of the {place} station",
            "membership identifier of the {place} library",
            "room code of the {place} hotel",
            "case reference of the {place} court",
        ),
        places=(
            *("Athens", "Boston", "Cairo", "Denver", "Edinburgh", "Florence", "Geneva", "Helsinki", "Istanbul"),
            *("Juneau", "Kiev", "Lisbon", "Madrid", "Naples", "Oslo", "Prague", "Riga", "Stockholm", "Vienna"),
        ),
    ),
}
