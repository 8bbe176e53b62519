# SPDX-License-Identifier: Apache-2.0
"""One report made of random numbers, and how tests read it."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from synthetic import make_profile, make_shape

from shplb.planning import make_plan
from shplb.report import make_report

PROFILE = make_profile(make_shape(layers=5, kv_heads=8, group=2, inert=(7,)), documents=3)
PLAN = make_plan(PROFILE, tp_size=2, density=0.2)
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)> \"'&\x00\x1b"


def report_of(folder: Path, *arguments: Any) -> str:
    make_report(*arguments, out=folder / "r.html")
    return (folder / "r.html").read_text(encoding="utf-8")


def figures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def titles(figure: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in figure.iter("title")]


def shown(page: str, key: str) -> str:
    found = re.findall(rf'data-number="{re.escape(key)}">([^<]*)<', page)
    assert len(found) == 1, key
    return str(found[0])


class Tags(HTMLParser):
    """Start tags with their attributes, and which of them were never closed."""

    _VOID = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
