# SPDX-License-Identifier: Apache-2.0
"""Bench results as tables: any JSON file with lists of objects, and the facts around them as provenance."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 16 * 2**20
MAX_ROWS, MAX_COLUMNS, MAX_CHARACTERS = 200, 40, 160


class BenchFileError(ValueError):
    """A bench file that can't be shown; the message is one sentence."""


@dataclass(frozen=True)
class BenchTable:
    """``name`` is where the rows stand in the file; cells are text, row by row; ``left_out`` rows are not shown."""

    name: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int


@dataclass(frozen=True)
class Bench:
    """One file: facts such as command, seed, device and versions, and its tables."""

    name: str
    provenance: list[tuple[str, str]]
    tables: list[BenchTable]


def read_bench(path: Path) -> Bench:
    """Read one result file. Lists of objects become tables, wherever they stand; all else is provenance.

    Raises:
        BenchFileError: the file can't be read, is too large, is not JSON, or holds no object and no list of objects.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise BenchFileError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB: give a bench result, not a log.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchFileError(f"{path} can't be read ({error.strerror}): give a JSON file made by a bench.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, BenchFileError):
            raise
        raise BenchFileError(f"{path} is not a JSON file ({error}): give a result made by a bench.") from None
    if _is_rows(content):
        content = {"rows": content}
    if not isinstance(content, dict):
        raise BenchFileError(f"{path} holds neither an object nor a list of objects: give a result made by a bench.")
    tables = [_table(name, rows) for name, rows in _find_rows(content, "")]
    facts = {key: value for key, value in content.items() if not _is_rows(value) and not _holds_rows(value)}
    return Bench(path.name, [(key, _text(value)) for key, value in facts.items()], tables)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(row, dict) for row in value)


def _holds_rows(value: object) -> bool:
    return isinstance(value, dict) and next(_find_rows(value, ""), None) is not None


def _find_rows(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for key, inner in value.items():
        if _is_rows(inner):
            yield prefix + key, inner
        elif isinstance(inner, dict):
            yield from _find_rows(inner, f"{prefix}{key}.")


def _table(name: str, rows: list[dict[str, Any]]) -> BenchTable:
    flat = [dict(_flatten(row, "")) for row in rows[:MAX_ROWS]]
    columns = list(dict.fromkeys(column for row in flat for column in row))[:MAX_COLUMNS]
    cells = [[_text(row[column]) if column in row else "" for column in columns] for row in flat]
    return BenchTable(name, columns, cells, len(rows) - len(flat))


def _flatten(row: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: object) -> str:
    """Floats with six digits, short lists and objects on one line, long texts cut."""
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, dict):
        text = ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    elif isinstance(value, list):
        text = ", ".join(_text(inner) for inner in value[:20]) + (", ..." if len(value) > 20 else "")
    else:
        text = "-" if value is None else str(value)
    longest = MAX_CHARACTERS if not isinstance(value, dict) else 8 * MAX_CHARACTERS
    return text if len(text) <= longest else text[: longest - 3] + "..."
