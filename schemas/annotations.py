"""What a dataset says about an image, in one form for every source. Regions are named by the `segment_id` of an object of
the same image; `split` says whether a statement may be trained on or is held out for evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.dialogue import Split, Turn
from schemas.regions import Level


@dataclass(frozen=True)
class Expression:
    """A phrase that names the segments `segment_ids` together; none means that it names nothing in the image. It has the levels
    that the release gives its target. `reference` is the number of the reference that it is a sentence of, where it has one."""

    text: str
    segment_ids: list[int]
    split: Split
    source: str
    levels: list[Level] = field(default_factory=list)
    reference: int | None = None


@dataclass(frozen=True)
class Caption:
    """A sentence about one segment, with the levels that the release gives it."""

    segment_id: int
    text: str
    split: Split
    source: str
    levels: list[Level] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """A question about one segment that carries its lettered options, and the option that is right."""

    segment_id: int
    question: str
    answer: str
    split: Split
    source: str


@dataclass(frozen=True)
class Tag:
    """A mark in the text of a `Reference`, such as `<object1>`, and the segment it stands for, with its levels."""

    name: str
    segment_id: int
    levels: list[Level] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """A question that points at segments by tags; the tags of `answer` that the question lacks are to be segmented."""

    question: str
    answer: str
    tags: list[Tag]
    split: Split
    source: str


@dataclass(frozen=True)
class Conversation:
    """Questions and answers about an image, each building on those before it. A tag of `pointed` stands for a region that is
    pointed at, one of `segmented` for a mask in an answer. An empty question asks for a description of the image with a mask
    for every phrase."""

    turns: list[Turn]
    pointed: list[Tag]
    segmented: list[Tag]
    split: Split
    source: str


# The columns of ANNOTATIONS that hold statements, and what each item of theirs is.
STATEMENTS: Mapping[str, type] = {
    "expressions": Expression,
    "captions": Caption,
    "choices": Choice,
    "references": Reference,
    "conversations": Conversation,
}
