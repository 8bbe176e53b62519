# SPDX-License-Identifier: Apache-2.0
"""A tokenised document and the hash that identifies a set of them."""

import hashlib
from array import array
from collections.abc import Iterable

import msgspec


class Document(msgspec.Struct, frozen=True):
    """Tokens of one document.

    name: unique within its set; domain: one of ``DOMAINS`` or ``user``; token_ids: ``[num_tokens]``, no special tokens
    except those of a chat template.
    """

    name: str
    domain: str
    token_ids: list[int]


def documents_hash(documents: Iterable[Document]) -> str:
    """Return the sha256 (64 hex digits) over names and token ids, in the given order.

    Lengths are hashed too, so moving a token from one document to the next changes the result.
    """
    digest = hashlib.sha256(b"shplb documents 1\0")
    for document in documents:
        name = document.name.encode()
        digest.update(array("Q", [len(name), len(document.token_ids)]).tobytes())
        digest.update(name)
        digest.update(array("q", document.token_ids).tobytes())
    return digest.hexdigest()
