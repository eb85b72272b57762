"""A judge of rendered scenes who has their files alone, and never asks the generator what is true.

Kind, colour and size of a shape are as its caption says, its place as its pixels lie in the panoptic PNG. A phrase is read
twice, as strictly and as liberally as people might, and names a shape only where both readings agree.
"""

import io
import json
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from schemas.storage import Folder

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
KINDS = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
EDGES = {"leftmost": (-1, 0), "rightmost": (1, 0), "topmost": (0, -1), "bottommost": (0, 1)}
LIKE = "with the same (?:colour|shape) as"
NOUN = rf"(?P<size>small|large)? ?(?P<colour>{'|'.join(COLOURS)})? ?(?P<kind>{'|'.join(KINDS)}|shape)"
PLACE = rf"(?P<relation>{'|'.join(SIDES)}|{LIKE}) (?P<anchor>the .+|<object1>)"
PHRASE = re.compile(rf"the (?P<extreme>{'|'.join(EDGES)}|largest|smallest)? ?{NOUN}(?: {PLACE})?")


@dataclass(frozen=True)
class Thing:
    """A shape as its caption and its pixels have it; `x` and `y` run from 0 to 1."""

    colour: str
    kind: str
    size: str
    mask_HW: np.ndarray
    caption: str
    annotation: dict[str, Any]

    @property
    def noun(self) -> str:
        return f"{self.colour} {self.kind}"

    @cached_property
    def x(self) -> float:
        return float((np.nonzero(self.mask_HW)[1].mean() + 0.5) / len(self.mask_HW))

    @cached_property
    def y(self) -> float:
        return float((np.nonzero(self.mask_HW)[0].mean() + 0.5) / len(self.mask_HW))


@dataclass(frozen=True)
class Files:
    """A rendered data set, read back."""

    folder: Folder

    def load(self, name: str) -> Any:
        data = self.folder.read(name)
        return pickle.loads(data) if name.endswith(".p") else json.loads(data)

    @property
    def images(self) -> dict[str, dict[str, Any]]:
        return {image["file_name"]: image for image in self.load("instances.json")["images"]}

    def ids_HW(self, image_id: int) -> np.ndarray:
        pixels_HWC = np.asarray(Image.open(io.BytesIO(self.folder.read(f"panoptic/{image_id:012}.png"))), int)
        return pixels_HWC @ [1, 256, 65536]

    def things(self) -> dict[str, list[Thing]]:
        """picture -> its shapes, instance by instance"""
        instances, captions = (self.load(name)["annotations"] for name in ("instances.json", "captions.json"))
        described = {each["image_id"]: each["segments_info"] for each in captions}
        things: dict[str, list[Thing]] = {}
        for name, image in self.images.items():
            annotations = [each for each in instances if each["image_id"] == image["id"]]
            pairs = zip(described[image["id"]], annotations, strict=True)
            ids_HW = self.ids_HW(image["id"])
            things[name] = [thing_of(said["description"], ids_HW == said["id"], each) for said, each in pairs]
        return things


def thing_of(caption: str, mask_HW: np.ndarray, annotation: dict[str, Any]) -> Thing:
    size, colour, kind = re.match(r"a (\w+) (\w+) (\w+)", caption).groups()
    return Thing(colour, kind, size, mask_HW, caption, annotation)


def named(text: str, things: list[Thing], *, strictly: bool, prompt: Thing | None = None) -> list[Thing]:
    """The shapes that answer to the phrase; `strictly`, only those of which nobody would doubt it."""
    found = PHRASE.fullmatch(text)
    assert found, f"{text!r} is not in the grammar"
    words = found.groupdict()
    candidates = [thing for thing in things if thing is not prompt and fits(words, thing)]
    if words["relation"]:
        (anchor,) = [prompt] if prompt else named(words["anchor"], things, strictly=strictly)
        others = [thing for thing in candidates if thing is not anchor]
        return [thing for thing in others if stands(words["relation"], thing, anchor, strictly=strictly)]
    return foremost(words["extreme"], candidates) if words["extreme"] else candidates


def fits(words: dict[str, str | None], thing: Thing) -> bool:
    kind = words["kind"] in ("shape", thing.kind)
    return kind and words["colour"] in (None, thing.colour) and words["size"] in (None, thing.size)


def stands(relation: str, thing: Thing, anchor: Thing, *, strictly: bool) -> bool:
    if relation.startswith("with the same"):
        return thing.colour == anchor.colour if "colour" in relation else thing.kind == anchor.kind
    right, down = SIDES[relation]
    across, along = thing.x - anchor.x, thing.y - anchor.y
    reach = right * across + down * along
    return reach > 0.09 and reach > 0.75 * max(abs(across), abs(along)) if strictly else reach > 0.04


def foremost(extreme: str, candidates: list[Thing]) -> list[Thing]:
    """Those that cannot be told from the first; an extreme among one is no comparison."""
    assert len(candidates) > 1
    if extreme in ("largest", "smallest"):
        return [thing for thing in candidates if (thing.size == "large") == (extreme == "largest")]
    right, down = EDGES[extreme]
    reach = [right * thing.x + down * thing.y for thing in candidates]
    return [thing for thing, value in zip(candidates, reach, strict=True) if value > max(reach) - 0.07]


def only(text: str, things: list[Thing], prompt: Thing | None = None) -> Thing:
    """The one shape that the phrase names on either reading."""
    strict, liberal = (named(text, things, strictly=strictly, prompt=prompt) for strictly in (True, False))
    assert len(strict) == 1 and strict == liberal, f"{text!r} names {len(strict)} to {len(liberal)}"
    return strict[0]


def family(text: str) -> str:
    words = PHRASE.fullmatch(text).groupdict()
    return next((name for name in ("relation", "extreme", "size") if words[name]), "attribute")
