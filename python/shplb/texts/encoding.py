# SPDX-License-Identifier: Apache-2.0
"""What the texts need from a tokenizer, without importing any tokenizer library."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class ChatTokenizer(Protocol):
    """The two methods of a Hugging Face tokenizer that are used here."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Return the conversation in the model's own form."""
        ...


# Either a whole tokenizer or a bare function from text to token ids that adds no special tokens.
Encoder = ChatTokenizer | Callable[[str], Sequence[int]]


def encode_text(encoder: Encoder, text: str) -> list[int]:
    """Return the token ids of ``text`` without special tokens around it."""
    if isinstance(encoder, ChatTokenizer):
        return list(encoder.encode(text, add_special_tokens=False))
    return list(encoder(text))


def chat_text(encoder: Encoder, content: str) -> str:
    """Return one user message in the model's chat template, or as plain text where there is no template."""
    if isinstance(encoder, ChatTokenizer) and getattr(encoder, "chat_template", None):
        messages = [{"role": "user", "content": content}]
        return str(encoder.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return content + "\n\nAnswer: "
