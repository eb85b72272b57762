"""The row of one picture while its annotation files speak, one after the other.

An object keeps the number that its file gives it (COCO's annotation id, the panoptic segment id) as `segment_id`, unless
another object of the picture has that number already; objects that come as a bare mask get a fresh number. A statement
that cannot be used becomes a line in `faults`: its kind, its file, what it is, what is wrong.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from schemas.annotations import Caption, Choice, Conversation, Expression, Reference, Tag
from schemas.dialogue import RESERVED, Split
from schemas.errors import DataError
from schemas.regions import Level, Rle, Segment, mask_overlaps, overlaps
from stages.sources.config import SourceFile

Statement = dict[str, Any]
SAME_OBJECT = 0.5
_TAG = re.compile(r"<object\d+>")
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class Unusable(DataError):
    """A statement that cannot be used; `kind` sorts such faults in the data card."""

    def __init__(self, kind: str, what: str):
        super().__init__(what)
        self.kind = kind


@dataclass
class Draft:
    """What has been said so far about a picture of `width` x `height`, and how instances were `drawn`: their segmentations."""

    width: int
    height: int
    objects: list[Segment] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    drawn: dict[int, Any] = field(default_factory=dict)
    _known: dict[tuple[str, int], int] = field(default_factory=dict)

    def attempt(self, file: SourceFile, statement: Statement, add: Callable[..., None]) -> None:
        """`add(self, file, statement)`, or a fault; a statement that cannot be used leaves no object behind."""
        before = len(self.objects)
        try:
            if "fault" in statement:
                raise Unusable(*statement["fault"])
            add(self, file, statement)
            return
        except Unusable as error:
            self.fault(error.kind, file, statement["what"], error.what)
        except DataError as error:
            self.fault("mask", file, statement["what"], error.what)
        except MALFORMED as error:
            self.fault("record", file, statement["what"], f"{type(error).__name__}: {error}")
        del self.objects[before:]

    def fault(self, kind: str, file: SourceFile, what: str, why: str) -> None:
        """One line that can be stored, whatever the file says."""
        self.faults.append(storable(" ".join(f"{kind}: {file.label}: {what}: {why}".split()))[:500])

    def add(self, origin: str, segment: Segment) -> None:
        """Take up an object that `origin` numbers `segment.segment_id`; two files may state the same object."""
        address = origin, segment.segment_id
        if address in self._known:
            earlier = next(each for each in self.objects if each.segment_id == self._known[address])
            if replace(earlier, segment_id=segment.segment_id) != segment:
                raise Unusable("duplicate id", f"{origin} has another object of that number")
            return
        taken = any(each.segment_id == segment.segment_id for each in self.objects)
        self._known[address] = self._fresh() if taken else segment.segment_id
        self.objects.append(replace(segment, segment_id=self._known[address]))

    def twin(self, segment: Segment) -> Segment | None:
        """The object of the same category that the segment overlaps by more than half, as panoptic quality matches them."""
        alike = [each for each in self.objects if each.category == segment.category and not each.is_crowd]
        if not alike:
            return None
        overlaps = mask_overlaps(segment.rle, [each.rle for each in alike])
        best = int(overlaps.argmax())
        return alike[best] if overlaps[best] > SAME_OBJECT else None

    def also_known(self, origin: str, number: int, segment: Segment) -> None:
        """`origin` calls `segment`, which is here already, `number`."""
        self._known[origin, number] = segment.segment_id

    def known(self, number: Any, *origins: str) -> int:
        """The segment_id of the object that the first of `origins` to know it numbers `number`."""
        found = [
            self._known[origin, number] for origin in origins if isinstance(number, int) and (origin, number) in self._known
        ]
        if not found:
            raise Unusable("unknown object", f"{' and '.join(origins)} have no usable object {number} on this picture")
        return found[0]

    def tag(self, number: int, rle: Rle, source: str, levels: Sequence[Level] = ()) -> Tag:
        """The tag that stands for the object with exactly this mask."""
        return Tag(f"<object{number}>", self.holding(rle, source), list(levels))

    def holding(self, rle: Rle, source: str) -> int:
        """The segment_id of the object with exactly this mask; where there is none, of a new object without a category."""
        for each in self.objects:
            if each.rle == rle and not each.is_crowd:
                return each.segment_id
        number = self._fresh()
        self.objects.append(Segment(number, "", is_thing=True, is_crowd=False, score=1.0, source=source, rle=rle))
        return number

    def overlaps(self, segmentations: Sequence[Any]) -> list[Level]:
        """Where pieces of COCO segmentations cover the same pixels."""
        if sum(len(each) if isinstance(each, list) else 1 for each in segmentations) < 2:
            return []
        return overlaps([part for each in segmentations for part in Rle.parts(each, self.height, self.width)])

    def _fresh(self) -> int:
        return max((each.segment_id for each in self.objects), default=0) + 1

    def region(self, segmentation: Any) -> Rle:
        """A COCO segmentation as a mask of this picture that is not empty; equal masks have equal run lengths."""
        rle = Rle.from_coco(segmentation, self.height, self.width)
        if rle.area == 0:
            outside = isinstance(segmentation, list) and self._is_outside(segmentation)
            raise Unusable("outside", "the polygon lies outside its picture") if outside else Unusable("empty", "no pixel")
        return rle if isinstance(segmentation, list) else Rle.of(rle.mask())  # encoders may differ in runs of length zero

    def _is_outside(self, polygons: list[list[float]]) -> bool:
        x, y = (np.concatenate([polygon[axis::2] for polygon in polygons]) for axis in (0, 1))
        return bool(x.max() <= 0 or y.max() <= 0 or x.min() >= self.width or y.min() >= self.height)


def storable(text: str) -> str:
    """`text` without what JSON can say and UTF-8 cannot: half of a pair of surrogates."""
    return text.encode("utf-8", "replace").decode()


def integer(value: Any) -> int:
    """`value`, if it is a number that can be an id."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{value!r} is no id")
    return value


def wording(value: Any) -> str:
    """`value` as the text of a statement."""
    if not isinstance(value, str) or not value.strip():
        raise Unusable("text", "it has no text")
    if found := RESERVED.search(value):
        raise Unusable("text", f"it says {found[0]}, which has a meaning of its own")
    return storable(value.strip())


def unmarked(value: Any) -> str:
    """`value` as a text in which tags are to stand, and so has none of them already."""
    text = wording(value)
    if found := _TAG.search(text):
        raise Unusable("text", f"it says {found[0]}, which has a meaning of its own")
    return text


def split_of(file: SourceFile, own: Any) -> tuple[Split, str]:
    """Split and source of a statement whose record names the split `own`: whatever is not `train` is held out."""
    if own is None and file.split is None:
        raise Unusable("split", "neither its record nor the config of its file names a split")
    if own is None:
        return file.split or "evaluation", file.label
    return ("train" if own == "train" else "evaluation"), storable(f"{file.label}/{own}")
