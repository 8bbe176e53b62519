# SPDX-License-Identifier: Apache-2.0
"""Several questions, one after the other, about the same long text: all but the first meet a cached prefix."""

import random

import msgspec

from long_tasks.corpus import Corpus, with_inserted
from long_tasks.example import Message, Place, at_all_places, fit
from shplb.texts.encoding import ChatTokenizer, Encoder, encode_text
from shplb.texts.retrieval_facts import WORDING

NUM_TURNS = 3
NEW_TOKENS = 16
# A question, the opening of its reply, the reply and the template around them.
_TURN_TOKENS = 80


class Conversation(msgspec.Struct, frozen=True):
    """A text with one fact per turn.

    opening: the first user message, text and question. questions, prefixes, answers: per turn; every reply is made to
    begin with its prefix.
    """

    opening: str
    questions: tuple[str, ...]
    prefixes: tuple[str, ...]
    answers: tuple[str, ...]

    def token_ids(self, encoder: Encoder, replies: list[str]) -> list[int]:
        """The prompt of the turn after ``replies``, as a chat client would send it."""
        turn = len(replies)
        asked = [self.opening, *self.questions[1:]]
        said = [prefix + reply for prefix, reply in zip(self.prefixes, replies, strict=False)]
        if isinstance(encoder, ChatTokenizer) and getattr(encoder, "chat_template", None):
            messages = [{"role": "user", "content": asked[0]}]
            for i, reply in enumerate(said):
                messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": asked[i + 1]}]
            text = str(encoder.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        else:
            text = "".join(f"{question}\n\n{reply}\n\n" for question, reply in zip(asked, said, strict=False))
            text += f"{asked[turn]}\n\n"
        return encode_text(encoder, text + self.prefixes[turn])


def conversations(num_tokens: int, encoder: Encoder, corpus: Corpus, *, count: int, seed: int) -> list[Conversation]:
    """``count`` conversations of at most, and nearly, ``num_tokens`` tokens, replies included."""
    return at_all_places(lambda place: _conversation(num_tokens, encoder, corpus, place, seed), count)


def _conversation(num_tokens: int, encoder: Encoder, corpus: Corpus, place: Place, seed: int) -> Conversation:
    wording = WORDING["held_out"]
    name = f"conversation {seed} {place.index}"
    rng = random.Random(name)
    keys = wording.keys(NUM_TURNS, rng)
    numbers = [str(number) for number in rng.sample(range(1_000_000, 10_000_000), NUM_TURNS)]
    facts = [wording.fact.format(key=key, number=number) for key, number in zip(keys, numbers, strict=True)]
    # The facts of one text stand far apart, whichever is asked for first.
    depths = [(place.depth(rng) + turn / NUM_TURNS) % 1.0 for turn in range(NUM_TURNS)]
    questions = [wording.question.format(key=key) for key in keys]
    prefixes = tuple(wording.lead_in.format(key=key) for key in keys)

    def build(size: int) -> Message:
        prose = corpus.prose(size, random.Random(f"text of {name}"))
        context = " ".join(with_inserted(prose, facts, depths))
        text = f"Read the following text and remember the numbers in it.\n\n{context}\n\n{questions[0]}"
        return Message(text, prefixes[0], (numbers[0],), tuple(facts))

    message, _ = fit(build, encoder, num_tokens - NUM_TURNS * _TURN_TOKENS, 50)
    return Conversation(message.text, tuple(questions), prefixes, tuple(numbers))
