# SPDX-License-Identifier: Apache-2.0
"""Shipped texts, document mixes, retrieval prompts and user texts."""

import hashlib
import json
import lzma
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from shplb.texts import (
    DOMAINS,
    Document,
    calibration_documents,
    documents_hash,
    held_out_documents,
    retrieval_prompts,
    user_documents,
    user_texts,
)
from shplb.texts.library import source_text, sources
from shplb.texts.retrieval_facts import WORDING

_DATA = files("shplb.texts").joinpath("data")


def words(text: str) -> list[int]:
    """Tokenizer of the tests: four characters a token, about what a real one needs."""
    return [int.from_bytes(text[i : i + 4].encode()[:4].ljust(4), "little") for i in range(0, len(text), 4)]


def plain(token_ids: list[int]) -> str:
    return b"".join(t.to_bytes(4, "little") for t in token_ids).decode(errors="replace")


class FakeChatTokenizer:
    chat_template = "yes"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        return words(text)

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: object) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return f"<user>{conversation[0]['content']}<assistant>"


def test_every_file_is_what_the_manifest_says() -> None:
    total = 0
    for source in sources():
        packed = _DATA.joinpath(source.file).read_bytes()
        content = lzma.decompress(packed)
        assert hashlib.sha256(content).hexdigest() == source.sha256
        assert len(content.decode()) == source.characters == len(source_text(source.name))
        total += len(packed)
    assert total < 1_500_000
    assert {s.file for s in sources()} | {"manifest.json"} == {f.name for f in _DATA.iterdir()}


def test_sources_file_names_every_text_with_its_hash() -> None:
    table = files("shplb.texts").joinpath("SOURCES.md").read_text()
    assert all(f"| {s.name} | {s.domain} |" in table and s.sha256 in table for s in sources())


def test_splits_share_no_source_and_no_passage() -> None:
    texts = {"calibration": set(), "held_out": set()}
    for source in sources():
        lines = {" ".join(p.split()) for p in source_text(source.name).split("\n\n")}
        texts[source.split] |= {line for line in lines if len(line) > 200}
    assert not texts["calibration"] & texts["held_out"]
    for split, count in (("calibration", 12), ("held_out", 6)):
        chosen = [s for s in sources() if s.split == split]
        assert len(chosen) >= count
        assert {s.domain for s in chosen} == set(DOMAINS) - {"retrieval"}


def test_documents_are_exact_distinct_and_repeatable() -> None:
    documents = calibration_documents(2048, words)
    assert all(len(d.token_ids) == 2048 for d in documents)
    assert len({d.name for d in documents}) == len(documents) >= 12
    assert {d.domain for d in documents} == set(DOMAINS)
    assert documents_hash(documents) == documents_hash(calibration_documents(2048, words))
    assert documents_hash(documents) != documents_hash(calibration_documents(2048, words, seed=1))
    held_out = held_out_documents(2048, words)
    assert len(held_out) >= 6
    assert not {d.name.split("@")[0] for d in documents} & {d.name.split("@")[0] for d in held_out}


def test_limit_takes_domains_in_turn_and_domains_choose() -> None:
    assert [d.domain for d in calibration_documents(512, words, limit=5)] == list(DOMAINS)
    assert {d.domain for d in held_out_documents(64, words, domains=["code"])} == {"code"}


def test_long_documents_go_on_in_the_same_domain_and_share_nothing() -> None:
    documents = calibration_documents(60_000, words, domains=["prose", "manual"])
    assert all(len(d.token_ids) == 60_000 for d in documents)
    assert [d.domain for d in documents] == ["prose", "manual", "prose"]  # of 4 and 3 texts of about 43000 tokens
    passages = [{p for p in plain(d.token_ids).split("\n\n") if len(p) > 200} for d in documents]
    assert all(len(each) > 100 for each in passages)
    assert len(set.union(*passages)) == sum(map(len, passages))


def test_domains_that_are_too_short_are_left_out() -> None:
    domains = [d.domain for d in calibration_documents(100_000, words)]
    assert domains == ["prose", "code", "manual", *["retrieval"] * 4]  # dialogue holds 78000
    assert {d.domain for d in calibration_documents(150_000, words)} == {"prose", "retrieval"}
    with pytest.raises(ValueError, match=r"num_tokens is 1000000, but the shipped held_out texts of domain dialogue"):
        held_out_documents(1_000_000, words, domains=["dialogue"])
    with pytest.raises(ValueError, match=r"of domain prose, code, manual, dialogue, retrieval hold fewer"):
        calibration_documents(1_000_000, words)


@pytest.mark.parametrize("num_tokens", [1024, 3072, 8192, 32768])
def test_twelve_documents_of_all_domains_at_usual_lengths(smollm2: Path, num_tokens: int) -> None:
    documents = calibration_documents(num_tokens, AutoTokenizer.from_pretrained(smollm2), limit=12)
    assert [len(d.token_ids) for d in documents] == [num_tokens] * 12
    assert len({d.name for d in documents}) == 12
    assert {d.domain for d in documents} == set(DOMAINS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "num_tokens is 0, expected at least 1"),
        ({"num_tokens": 8, "limit": 0}, "limit is 0, expected at least 1"),
        ({"num_tokens": 8, "domains": ["poems"]}, r"domains is \['poems'\], expected one or more of prose"),
        ({"num_tokens": 8, "domains": []}, r"domains is \[\], expected"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_documents(tokenizer_encode=words, **arguments)


def test_hash_depends_on_names_tokens_and_borders() -> None:
    def digest(*documents: tuple[str, list[int]]) -> str:
        return documents_hash(Document(name=n, domain="prose", token_ids=t) for n, t in documents)

    different = [digest(("a", [1, 2])), digest(("b", [1, 2])), digest(("a", [2, 1])), digest(("a", [1]), ("", [2]))]
    assert len(set(different)) == 4
    assert re.fullmatch(r"[0-9a-f]{64}", different[0])


def test_retrieval_prompt_holds_one_answer_at_its_depth() -> None:
    for i, prompt in enumerate(retrieval_prompts(3000, FakeChatTokenizer(), count=5, seed=3, split="held_out")):
        text = plain(prompt.token_ids)
        assert text.startswith("<user>")
        assert "<assistant>" in text
        assert 2990 <= len(prompt.token_ids) <= 3000
        assert text.count(prompt.answer) == prompt.text.count(prompt.answer) == 1
        assert abs(prompt.text.index(prompt.answer) / len(prompt.text) - prompt.depth) < 0.15
        assert i / 5 <= prompt.depth <= (i + 1) / 5
        assert len(set(re.findall(r"\b\d{7}\b", prompt.text))) >= 3
        assert plain(prompt.answer_token_ids).strip() == prompt.answer


def test_retrieval_depth_and_length_can_be_given() -> None:
    for num_tokens in (300, 1000, 16000):
        prompt = retrieval_prompts(num_tokens, words, count=1, seed=0, split="calibration", depth=0.5)[0]
        assert prompt.depth == 0.5
        assert num_tokens - 10 <= len(prompt.token_ids) <= num_tokens
    with pytest.raises(ValueError, match="20 tokens are too few for a retrieval prompt"):
        retrieval_prompts(20, words, count=1, seed=0, split="calibration")
    with pytest.raises(ValueError, match="more than the filler text"):
        retrieval_prompts(10**6, words, count=1, seed=0, split="calibration")
    with pytest.raises(ValueError, match=r"depth is 1\.5, expected"):
        retrieval_prompts(500, words, count=1, seed=0, split="calibration", depth=1.5)
    with pytest.raises(ValueError, match="split is 'test', expected"):
        retrieval_prompts(500, words, count=1, seed=0, split="test")


def test_retrieval_splits_share_no_wording() -> None:
    a, b = WORDING["calibration"], WORDING["held_out"]
    assert not set(a.places) & set(b.places)
    assert not set(a.things) & set(b.things)
    assert a.fact != b.fact
    assert a.prompt != b.prompt
    assert a.question != b.question


def test_retrieval_documents_end_with_the_answer() -> None:
    for document in calibration_documents(1500, words, domains=["retrieval"]):
        text = plain(document.token_ids)
        question = re.search(r"what is the ([^?]+)\?", text)
        assert question is not None
        fact = re.search(rf"the {question.group(1)} is (\d{{7}})", text)
        assert fact is not None
        assert fact.group(1) in text[question.end() :]


def test_user_texts_from_jsonl_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"text": c * 400}) for c in "abc") + "\n\n")
    assert [name for name, _ in user_texts(path)] == ["mine.jsonl:1", "mine.jsonl:2", "mine.jsonl:3"]
    assert [len(d.token_ids) for d in user_documents(path, 100, words)] == [100, 100, 100]
    joined = user_documents(path, 150, words)
    assert [d.name for d in joined] == ["mine.jsonl:1..mine.jsonl:2"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("x" * 80)
    (tmp_path / "a.txt").write_text("y" * 80)
    assert [name for name, _ in user_texts(tmp_path)] == ["a.txt", "sub/b.md"]
    with pytest.raises(ValueError, match="hold only 300 tokens together, expected at least 500"):
        user_documents(path, 500, words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\nnot json\n', r"line 2 is not JSON"),
        (b'{"txt": "a"}\n', r'line 1 has no "text"'),
        (b'["text"]\n', r'line 1 has no "text"'),
        (b"\n", r"is empty"),
        (b"\xff\xfe", r"is not UTF-8 text \(byte 0\)"),
    ],
)
def test_bad_user_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"mine\.jsonl.*{message}|mine\.jsonl {message}"):
        user_texts(path)


def test_missing_or_empty_user_paths_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist: expected a \.jsonl file or a folder"):
        user_texts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"holds no \.txt or \.md file"):
        user_texts(tmp_path)


def test_texts_and_hf_import_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, shplb.texts, shplb.hf, shplb.hf.gguf, shplb.hf.padding, shplb.hf.perplexity;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
