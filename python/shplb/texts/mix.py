# SPDX-License-Identifier: Apache-2.0
"""Documents of exact length, mixed over the domains of one split."""

import random
from collections.abc import Sequence
from itertools import zip_longest

from shplb.texts.document import Document
from shplb.texts.encoding import Encoder, encode_text
from shplb.texts.library import DOMAINS, Source, Split, source_text, sources_of
from shplb.texts.retrieval import retrieval_documents

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

    A document longer than its text goes on in other texts of the same domain and split. Raises ValueError for a bad
    argument, and when a whole domain has fewer than ``num_tokens`` tokens.
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
    sizes = [_NUM_RETRIEVAL[split] if domain == "retrieval" else len(sources_of(split, domain)) for domain in chosen]
    # In turn over the domains, so that a small limit still sees all kinds of text.
    rounds = zip_longest(*([(domain, i) for i in range(size)] for domain, size in zip(chosen, sizes, strict=True)))
    order = [pick for picks in rounds for pick in picks if pick is not None][:limit]
    return [_document(split, domain, i, num_tokens, encoder, seed) for domain, i in order]


def _document(split: Split, domain: str, index: int, num_tokens: int, encoder: Encoder, seed: int) -> Document:
    if domain == "retrieval":
        return retrieval_documents(num_tokens, encoder, indexes=[index], seed=seed, split=split)[0]
    sources = sources_of(split, domain)
    source = sources[index]
    text = source_text(source.name)
    start = _start(source, text, num_tokens, seed)
    end = start + _MAX_CHARACTERS_PER_TOKEN * num_tokens
    token_ids = encode_text(encoder, text[start:end])
    if len(token_ids) < num_tokens:
        start, token_ids = 0, _joined_tokens(sources, index, num_tokens, encoder)
    return Document(name=f"{source.name}@{start}", domain=domain, token_ids=token_ids[:num_tokens])


def _start(source: Source, text: str, num_tokens: int, seed: int) -> int:
    """Return a seeded start of a paragraph after which enough text remains, 0 where there is none."""
    last = len(text) - _MAX_CHARACTERS_PER_TOKEN * num_tokens
    # random.Random hashes a string with sha512, so the choice is the same in every process.
    wanted = random.Random(f"{seed} {source.name}").randint(0, max(0, last))
    return text.rfind("\n\n", 0, wanted) + 2 if "\n\n" in text[:wanted] else 0


def _joined_tokens(sources: tuple[Source, ...], index: int, num_tokens: int, encoder: Encoder) -> list[int]:
    """Return at least ``num_tokens`` tokens of text ``index`` and those after it, each text at most once."""
    token_ids: list[int] = []
    for source in sources[index:] + sources[:index]:
        token_ids += encode_text(encoder, source_text(source.name))
        if len(token_ids) >= num_tokens:
            return token_ids
    raise ValueError(
        f"num_tokens is {num_tokens}, but the shipped {sources[0].split} texts of domain {sources[0].domain} hold only "
        f"{len(token_ids)} tokens; ask for fewer or give longer texts of your own"
    )
