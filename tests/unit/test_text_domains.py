# SPDX-License-Identifier: Apache-2.0
"""The domain of a document, read from its name."""

import pytest

from shplb.texts import DOMAINS, calibration_documents, held_out_documents
from shplb.texts.domains import domain_of


def test_domains_of_shipped_texts() -> None:
    def encode(text: str) -> list[int]:
        return [1] * len(text.split())

    for documents in (calibration_documents(512, encode), held_out_documents(512, encode)):
        assert {document.domain for document in documents} == set(DOMAINS)
        assert [domain_of(document.name) for document in documents] == [document.domain for document in documents]


@pytest.mark.parametrize(
    ("name", "domain"),
    [("chat/monday.txt", "chat"), ("chat/a/b.md..chat/c.md", "chat"), ("chat/a.md..law/b.md", None), ("a.txt", None),
     ("texts.jsonl:3", None), ("texts.jsonl:3..texts.jsonl:9", None), ("unknown@5", None), ("austen_emma", None)],
)  # fmt: skip
def test_domains_of_the_users_texts(name: str, domain: str | None) -> None:
    assert domain_of(name) == domain
