# SPDX-License-Identifier: Apache-2.0
"""Text that hides what is asked for, and words for keys and lists: shipped with the package, or the user's."""

import random
import re
from pathlib import Path

from shplb.texts import user_texts
from shplb.texts.library import Split, source_text, sources, sources_of

_PARAGRAPH_CHARACTERS = (300, 1500)
# RULER's noise: sentences that say nothing, over and over.
NOISE = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")


class Corpus:
    """Prose of the held-out split and words of all shipped texts, or both from the user's.

    Attributes:
        sentences: in reading order.
        paragraphs: of 300 to 1500 characters, white space made uniform.
        words: lower-case, 4 to 10 letters, sorted, each at least twice in the texts.
    """

    def __init__(self, prose: list[str], paragraphs_of: list[str], words_of: list[str]) -> None:
        """Texts to take sentences, paragraphs and words from; ValueError where they are too few."""
        self.sentences = [s for text in prose for p in _paragraphs(text) if len(p) > 80 for s in split_sentences(p)]
        low, high = _PARAGRAPH_CHARACTERS
        found = dict.fromkeys(p for text in paragraphs_of for p in _paragraphs(text) if low <= len(p) <= high)
        self.paragraphs = list(found)
        counts: dict[str, int] = {}
        for text in words_of:
            for word in re.findall(r"(?<![\w'-])[a-z]{4,10}(?![\w'-])", text):
                counts[word] = counts.get(word, 0) + 1
        self.words = sorted(word for word, count in counts.items() if count > 1)
        if len(self.sentences) < 50 or len(self.paragraphs) < 20 or len(self.words) < 500:
            raise ValueError(
                f"the texts hold {len(self.sentences)} sentences, {len(self.paragraphs)} paragraphs and "
                f"{len(self.words)} words, expected at least 50, 20 and 500; give more or longer texts."
            )

    @classmethod
    def shipped(cls, split: Split = "held_out") -> "Corpus":
        """Prose of one split, by default the one that calibration never sees; words of all shipped texts but code."""
        prose = [source_text(source.name) for source in sources_of(split, "prose")]
        judged = [source_text(s.name) for s in sources() if s.split == split and s.domain != "code"]
        return cls(prose, judged, [source_text(s.name) for s in sources() if s.domain != "code"])

    @classmethod
    def of_user(cls, path: Path) -> "Corpus":
        """The user's texts, as ``shplb profile --texts`` takes them; words are still the shipped ones."""
        texts = [text for _, text in user_texts(path)]
        return cls(texts, texts, [source_text(s.name) for s in sources() if s.domain != "code"])

    def prose(self, num_words: int, rng: random.Random) -> list[str]:
        """Sentences of ``num_words`` words from a random one on, from the start again where the text ends.

        The last one is cut where it is too long.
        """
        found: list[str] = []
        place = rng.randrange(len(self.sentences))
        while num_words > 0:
            words = self.sentences[place % len(self.sentences)].split()
            found.append(" ".join(words[:num_words]))
            num_words -= len(words)
            place += 1
        return found

    def keys(self, count: int, rng: random.Random) -> list[str]:
        """``count`` different pairs of words, joined by a hyphen."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[f"{rng.choice(self.words)}-{rng.choice(self.words)}"] = None
        return list(found)


def split_sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[a-z][.?!]) (?=[A-Z\"'])", paragraph)


def _paragraphs(text: str) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]


def with_inserted(units: list[str], inserted: list[str], depths: list[float]) -> list[str]:
    """``units`` with every inserted piece at its depth in [0, 1], counted in units; equal depths in the given order."""
    order = sorted(range(len(inserted)), key=lambda i: (round(depths[i] * len(units)), i))
    parts: list[str] = []
    done = 0
    for i in order:
        position = round(depths[i] * len(units))
        parts += [*units[done:position], inserted[i]]
        done = position
    return parts + units[done:]
