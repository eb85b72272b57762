"""Phrases of a grounded caption by the letters they take up: where they stand, and the caption with a tag behind each.

Correct is that a phrase stands where its whole words do, and that none lies across another. The release knows neither rule
(`compat = "paper"`), and its arithmetic puts tags where nobody would:

- A phrase without a place is used if the caption says it in lower case, were it within a word, but is looked for as it is
  spelt. One with a capital is found at -1, that is before the last letter of what the caption is by then.
- Of such phrases, in the order of the file, each ends one letter before the first later one that does not begin behind its
  end: one that lies across it or at its heels, but also one far ahead of it, and then its end lies before its beginning.
- Tags are put in from the last beginning to the first, at the places of the bare caption. So a phrase around another ends too
  early, and letters between an end and a beginning behind it are said twice.
- The n-th `[SEG]` has the mask of the n-th phrase by beginning, whichever phrase it was put in for.

How ends are cut, and how the caption is put together, is as in the public loader of GLaMM (mbzuai-oryx/groundingLMM), whose
files these are; what is known of the release agrees with it. One thing is not reproduced: an end that comes to lie within a
`[SEG]` tears it apart, and the release then learns from the text alone. Here such a caption cannot be used.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from schemas.annotations import Tag
from schemas.config import Compat
from schemas.dialogue import PHRASE, PHRASE_END, SEG
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable


class Span(NamedTuple):
    """A phrase's first letter and the one after its last, its masks, and whether it had to be looked for."""

    start: int
    end: int
    masks: Any
    is_sought: bool


Tagged = Sequence[tuple[Span, Tag]]


class Placement(NamedTuple):
    """`find` gives the place of a phrase in a text, given the spans before it; `lay_out` the spans to be tagged, in order;
    `tell` the text with a tag behind each of them."""

    find: Callable[[str, str, Sequence[Span]], tuple[int, int]]
    lay_out: Callable[[Draft, SourceFile, Statement, list[Span]], Iterable[Span]]
    tell: Callable[[str, Tagged], str]


def _words(phrase: str, text: str, before: Sequence[Span]) -> tuple[int, int]:
    """Where it stands as whole words; of several places the first at which no phrase `before` stands already."""
    phrase = phrase.lower()
    places = [found.span() for found in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)]
    if not places:
        raise Unusable("phrase", f"it does not say {phrase!r}")
    taken = {(span.start, span.end) for span in before}
    return next((place for place in places if place not in taken), places[0])


def _letters(phrase: str, text: str, _: Sequence[Span]) -> tuple[int, int]:
    if phrase.lower() not in text:
        raise Unusable("phrase", f"it does not say {phrase!r}")
    start = text.find(phrase)
    return (start, start) if start < 0 else (start, start + len(phrase))


def _apart(draft: Draft, file: SourceFile, statement: Statement, spans: list[Span]) -> Iterator[Span]:
    """Those that lie across none before; of two that begin together the longer comes first."""
    end = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.start < end:
            draft.fault("phrase", file, statement["what"], f"letters {span.start} to {span.end} lie across another phrase")
        else:
            end = span.end
            yield span


def _all(_draft: Draft, _file: SourceFile, _statement: Statement, spans: list[Span]) -> list[Span]:
    return sorted((_cut(span, spans[number:]) for number, span in enumerate(spans, start=1)), key=_start)


def _cut(span: Span, later: Sequence[Span]) -> Span:
    begins = [each.start for each in later if each.start <= span.end]
    return span._replace(end=begins[0] - 1) if span.is_sought and begins else span


def _start(span: Span) -> int:
    return span.start


def _told(text: str, tagged: Tagged) -> str:
    pieces, end = [], 0
    for span, tag in tagged:
        pieces += [text[end : span.start], f"{PHRASE} {text[span.start : span.end]} {PHRASE_END} {tag.name}"]
        end = span.end
    return "".join([*pieces, text[end:]])


def _put_in(text: str, tagged: Tagged) -> str:
    for span in sorted((span for span, _ in tagged), key=_start, reverse=True):  # of equal ones the first remains the first
        before, phrase, after = text[: span.start], text[span.start : span.end], text[span.end :]
        text = f"{before}{PHRASE} {phrase} {PHRASE_END} {SEG}{after}"
    first, *others = text.split(SEG)
    if len(others) != len(tagged):
        raise Unusable("phrase", f"a phrase ends within the {SEG} of another")
    return first + "".join(tag.name + piece for (_, tag), piece in zip(tagged, others, strict=True))


PLACEMENTS: Mapping[Compat, Placement] = {
    "correct": Placement(_words, _apart, _told),
    "paper": Placement(_letters, _all, _put_in),
}
