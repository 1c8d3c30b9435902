"""Sentences of six manuals, for the English family and its tasks: `python -m w2s_ray.recipes.english_text FOLDER`.

FOLDER holds what six packages of Debian 12 unpack to:

    apt-get download apache2-doc postgresql-doc-15 python3.11-doc python-django-doc python-sqlalchemy-doc sqlite3-doc
    for package in *.deb; do dpkg-deb -x $package FOLDER; done

Promises: pages stand in the order of their names; no sentence stands twice; a page is either for pretraining or for tasks, by
the hash of its name alone.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path


@dataclass(frozen=True)
class Manual:
    pages: str
    """Pattern of its files."""
    licence: str
    task_share: float = 0.0
    """Share of its pages that are kept for tasks."""


MANUALS = {
    "apache": Manual("usr/share/doc/apache2-doc/manual/en/**/*.html", "Apache-2.0"),
    "django": Manual("usr/share/doc/python-django-doc/html/**/*.html", "BSD-3-Clause"),
    "postgresql": Manual("usr/share/doc/postgresql-doc-15/html/**/*.html", "PostgreSQL", task_share=0.4),
    "python": Manual("usr/share/doc/python3.11/html/**/*.html", "PSF-2.0"),
    "sqlalchemy": Manual("usr/share/doc/python-sqlalchemy-doc/html/**/*.html", "MIT"),
    "sqlite": Manual("usr/share/doc/sqlite3/**/*.html", "public domain", task_share=0.6),
}
MIN_WORDS, MAX_WORDS = 7, 40
MIN_LETTERS = 0.88
"""Share of letters and blanks in a sentence. Fewer are code or lists."""

SKIPPED_TAGS = {"script", "style", "pre", "table", "head", "dt", "svg"}
INLINE_TAGS = {
    "a",
    "abbr",
    "acronym",
    "b",
    "br",
    "cite",
    "code",
    "dfn",
    "em",
    "font",
    "i",
    "kbd",
    "q",
    "samp",
    "small",
    "span",
    "strong",
    "sub",
    "sup",
    "tt",
    "u",
    "var",
}


@dataclass(frozen=True)
class Page:
    manual: str
    name: str
    sentences: tuple[str, ...]

    @property
    def is_for_tasks(self) -> bool:
        digest = hashlib.sha256(f"{self.manual}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") < MANUALS[self.manual].task_share * 2**32


def read_pages(folder: Path) -> list[Page]:
    """All pages with at least one sentence. Of equal sentences the first is kept."""
    seen: set[str] = set()
    pages = []
    for name, manual in sorted(MANUALS.items()):
        paths = sorted(folder.glob(manual.pages))
        if not paths:
            raise SystemExit(f"{folder}: nothing matches {manual.pages}; --help says what to unpack there")
        root = folder / manual.pages.split("*")[0]
        for path in paths:
            paragraphs = html_paragraphs(path.read_text(encoding="utf-8", errors="replace"))
            sentences = [text for text in dict.fromkeys(sentences_of(paragraphs)) if text not in seen]
            seen.update(sentences)
            if sentences:
                pages.append(Page(name, str(path.relative_to(root).with_suffix("")), tuple(sentences)))
    return pages


def sentences_of(paragraphs: list[str]) -> list[str]:
    sentences = []
    for paragraph in paragraphs:
        for text in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", " ".join(paragraph.split())):
            letters = sum(character.isalpha() or character == " " for character in text)
            if (
                MIN_WORDS <= len(text.split()) <= MAX_WORDS
                and text.isascii()
                and text[0].isupper()
                and text[-1] in ".!?"
                and letters >= MIN_LETTERS * len(text)
            ):
                sentences.append(text)
    return sentences


class _Paragraphs(HTMLParser):
    """Text between tags that are not inline, without the content of SKIPPED_TAGS."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs = [""]
        self.skipped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED_TAGS:
            self.skipped.append(tag)
        if tag not in INLINE_TAGS:
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.skipped:
            while self.skipped.pop() != tag:
                pass
        if tag not in INLINE_TAGS:
            self.paragraphs.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<br/>` has no content."""

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.paragraphs[-1] += data


def html_paragraphs(source: str) -> list[str]:
    parser = _Paragraphs()
    parser.feed(source)
    return [paragraph for paragraph in parser.paragraphs if paragraph.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    pages = read_pages(parser.parse_args().folder)
    for name, chosen in (("pretraining", False), ("tasks", True)):
        part = [page for page in pages if page.is_for_tasks == chosen]
        of_manual: Counter[str] = Counter()
        for page in part:
            of_manual[page.manual] += len(page.sentences)
        print(f"{name}: {len(part):,} pages, {of_manual.total():,} sentences ({dict(of_manual)})")


if __name__ == "__main__":
    main()
