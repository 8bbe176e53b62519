# SPDX-License-Identifier: Apache-2.0
"""Documents of exact length, mixed over the domains of one split."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from shplb.texts.document import Document
from shplb.texts.encoding import Encoder, encode_text
from shplb.texts.library import DOMAINS, Source, Split, source_text, sources_of
from shplb.texts.retrieval import FillerTooShortError, retrieval_documents

# Retrieval documents can be made without end; these keep their share of a mix close to that of the other domains.
_NUM_RETRIEVAL = {"calibration": 4, "held_out": 2}
# Generous bound on characters per token: only about this much text is tokenised for a short document.
_MAX_CHARACTERS_PER_TOKEN = 8


def calibration_documents(
    num_tokens: int,
    tokenizer_encode: Encoder,
    *,
    domains: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Document]:
    """Return documents of exactly ``num_tokens`` tokens from the calibration split.

    tokenizer_encode: a Hugging Face tokenizer, or a function from text to token ids that adds no special tokens (then
    retrieval documents carry no chat template). domains: subset of ``DOMAINS``, default all. limit: at most so many,
    taken in turn from each domain. seed: where in its text a document starts, and the facts of retrieval documents.

    Texts shorter than a document are joined with others of the same domain, and no passage is in two documents, which
    would agree with each other for no good reason. So there are fewer documents the longer they are, and none of a
    domain with fewer than ``num_tokens`` tokens. Retrieval documents share filler, but not facts and their places.

    Raises ValueError for a bad argument, and when no domain has ``num_tokens`` tokens.
    """
    return _documents("calibration", num_tokens, tokenizer_encode, domains, limit, seed)


def held_out_documents(
    num_tokens: int,
    tokenizer_encode: Encoder,
    *,
    domains: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[Document]:
    """Return documents of exactly ``num_tokens`` tokens from texts that calibration never sees.

    Arguments and errors as for ``calibration_documents``.
    """
    return _documents("held_out", num_tokens, tokenizer_encode, domains, limit, seed)


def _documents(
    split: Split, num_tokens: int, encoder: Encoder, domains: Sequence[str] | None, limit: int | None, seed: int
) -> list[Document]:
    if num_tokens < 1:
        raise ValueError(f"num_tokens is {num_tokens}, expected at least 1")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected at least 1")
    chosen = tuple(DOMAINS if domains is None else domains)
    unknown = [domain for domain in chosen if domain not in DOMAINS]
    if unknown or not chosen:
        raise ValueError(f"domains is {list(chosen)}, expected one or more of {', '.join(DOMAINS)}")
    streams = [_domain_documents(split, domain, num_tokens, encoder, seed) for domain in chosen]
    documents = list(islice(_in_turn(streams), limit))
    if not documents:
        raise ValueError(
            f"num_tokens is {num_tokens}, but the shipped {split} texts of domain {', '.join(chosen)} hold fewer; "
            "ask for fewer tokens or give longer texts of your own"
        )
    return documents


def _in_turn(streams: Sequence[Iterator[Document]]) -> Iterator[Document]:
    """Yield one document of each stream after the other, so that a small limit still sees all kinds of text."""
    waiting = deque(streams)
    while waiting:
        stream = waiting.popleft()
        if (document := next(stream, None)) is not None:
            yield document
            waiting.append(stream)


def _domain_documents(split: Split, domain: str, num_tokens: int, encoder: Encoder, seed: int) -> Iterator[Document]:
    """Yield the documents of one domain, no passage in two of them; none where the domain holds too few tokens."""
    if domain == "retrieval":
        for index in range(_NUM_RETRIEVAL[split]):
            try:
                yield from retrieval_documents(num_tokens, encoder, indexes=[index], seed=seed, split=split)
            except FillerTooShortError:
                return
        return
    short: list[Source] = []
    for source in sources_of(split, domain):
        document = _one_text(source, num_tokens, encoder, seed)
        if document is None:
            short.append(source)
        else:
            yield document
    yield from _joined_texts(short, num_tokens, encoder)


def _one_text(source: Source, num_tokens: int, encoder: Encoder, seed: int) -> Document | None:
    """Return a document out of one text, None where the text is too short."""
    text = source_text(source.name)
    start = _start(source, text, num_tokens, seed)
    token_ids = encode_text(encoder, text[start : start + _MAX_CHARACTERS_PER_TOKEN * num_tokens])
    if len(token_ids) < num_tokens:
        return None
    return Document(name=f"{source.name}@{start}", domain=source.domain, token_ids=token_ids[:num_tokens])


def _start(source: Source, text: str, num_tokens: int, seed: int) -> int:
    """Return a seeded start of a paragraph after which enough text remains, 0 where there is none."""
    last = len(text) - _MAX_CHARACTERS_PER_TOKEN * num_tokens
    # random.Random hashes a string with sha512, so the choice is the same in every process.
    wanted = random.Random(f"{seed} {source.name}").randint(0, max(0, last))
    return text.rfind("\n\n", 0, wanted) + 2 if "\n\n" in text[:wanted] else 0


def _joined_texts(short: Sequence[Source], num_tokens: int, encoder: Encoder) -> Iterator[Document]:
    """Yield documents of whole texts in a row, each text in one document; what is left at the end is dropped."""
    names: list[str] = []
    token_ids: list[int] = []
    for source in short:
        names.append(source.name)
        token_ids += encode_text(encoder, source_text(source.name))
        if len(token_ids) >= num_tokens:
            yield Document(name=f"{names[0]}@0", domain=source.domain, token_ids=token_ids[:num_tokens])
            names, token_ids = [], []
