# SPDX-License-Identifier: Apache-2.0
"""Texts that the user brings: a .jsonl file or a folder of .txt and .md files."""

import json
from pathlib import Path

from shplb.texts.document import Document
from shplb.texts.encoding import Encoder, encode_text


def user_documents(path: str | Path, num_tokens: int, tokenizer_encode: Encoder) -> list[Document]:
    """Return the user's texts as documents of exactly ``num_tokens`` tokens, domain ``user``.

    Texts that are too short are joined with the ones after them; what is left over at the end is dropped.
    Raises ValueError where all texts together are shorter than ``num_tokens``; else as ``user_texts``.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens is {num_tokens}, expected at least 1")
    documents: list[Document] = []
    names: list[str] = []
    token_ids: list[int] = []
    for name, text in user_texts(path):
        names.append(name)
        token_ids += encode_text(tokenizer_encode, text)
        if len(token_ids) >= num_tokens:
            label = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
            documents.append(Document(name=label, domain="user", token_ids=token_ids[:num_tokens]))
            names, token_ids = [], []
    if not documents:
        raise ValueError(
            f"the texts in {path} hold only {len(token_ids)} tokens together, expected at least {num_tokens}; "
            "give more text or profile shorter lengths"
        )
    return documents


def user_texts(path: str | Path) -> list[tuple[str, str]]:
    """Return ``(name, text)`` of each text in a .jsonl file (``{"text": ...}`` per line) or a folder of .txt/.md files.

    Raises ValueError, naming file and line, for anything that is not such a text.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_texts(path)
    if path.suffix == ".jsonl" and path.is_file():
        return _jsonl_texts(path)
    found = "is neither" if path.exists() else "does not exist"
    raise ValueError(f"{path} {found}: expected a .jsonl file or a folder of .txt and .md files")


def _folder_texts(folder: Path) -> list[tuple[str, str]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md") and path.is_file())
    texts = [(path.relative_to(folder).as_posix(), _read(path)) for path in paths]
    texts = [(name, text) for name, text in texts if text.strip()]
    if not texts:
        raise ValueError(
            f"{folder} holds no .txt or .md file with text in it; put the texts there or give a .jsonl file"
        )
    return texts


def _jsonl_texts(path: Path) -> list[tuple[str, str]]:
    texts = []
    # Only \n ends a line of JSON: splitlines() would also cut inside strings, at U+2028 for example.
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path} line {number} is not JSON ({error.msg}), expected {{"text": ...}}') from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'{path} line {number} has no "text" that is a non-empty string, expected {{"text": ...}}')
        texts.append((f"{path.name}:{number}", text))
    if not texts:
        raise ValueError(f'{path} is empty, expected one {{"text": ...}} per line')
    return texts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv") from None
