"""What can be said about a scene, and whether it is true: phrases, and the evaluator that finds what they name.

Relations and extremes are three-valued: true, false, or too close to call. So a phrase has *sure* referents and
*possible* ones, and is used only where the two agree: to name one shape, or to name nothing.
"""

import math
from bisect import bisect
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from stages.sources.shapes.outlines import Shape
from stages.sources.shapes.scene import COLOURS, KINDS, SIZES, Scene

DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
LIKENESS = {"with the same colour as": "colour", "with the same shape as": "kind"}
EDGES = {"leftmost": (-1, 0), "rightmost": (1, 0), "topmost": (0, -1), "bottommost": (0, 1)}
SCALES = {"largest": 1, "smallest": -1}

CLEAR = 0.10  # of the side: from here on a shape is left of another
LEVEL = 0.03  # up to here it is not
LEAD = 0.08  # of the side: by how much the leftmost shape leads the next
BIGGER = 1.3  # the largest shape's radius over the next one's
FAMILIES = {"attribute": 0.7, "size": 0.1, "relation": 0.12, "extreme": 0.08}


class Phrase(NamedTuple):
    """A referring expression; what is None is not said. `anchor` is another phrase, or the number of a pointed-at shape."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    extreme: str | None = None
    relation: str | None = None
    anchor: "Phrase | int | None" = None

    def text(self, tag: str = "<object1>") -> str:
        """The words, with `tag` for a pointed-at shape."""
        words = ["the", self.extreme, self.size, self.colour, self.kind or "shape", self.place(tag)]
        return " ".join(word for word in words if word)

    def place(self, tag: str = "<object1>") -> str:
        """The words of the relation; none where there is none."""
        anchor = self.anchor.text() if isinstance(self.anchor, Phrase) else tag
        return f"{self.relation} {anchor}" if self.relation else ""


class Referents(NamedTuple):
    sure: set[int]
    possible: set[int]


def referents(phrase: Phrase, scene: Scene) -> Referents:
    """The shapes that the phrase names, by number."""
    named = {number for number, shape in enumerate(scene.shapes) if _fits(phrase, shape)}
    if phrase.relation:
        anchor = _anchor(phrase, scene)
        if anchor is None:
            return Referents(set(), named)
        verdicts = [(number, holds(phrase.relation, scene, number, anchor)) for number in named if number != anchor]
        return Referents(
            sure={number for number, verdict in verdicts if verdict},
            possible={number for number, verdict in verdicts if verdict is not False},
        )
    return _foremost(phrase.extreme, scene, named) if phrase.extreme else Referents(named, named)


def names_only(phrase: Phrase, scene: Scene, number: int) -> bool:
    """Whether the phrase names this shape and certainly no other."""
    found = referents(phrase, scene)
    return found.sure == found.possible == {number}


def names_nothing(phrase: Phrase, scene: Scene) -> bool:
    return not referents(phrase, scene).possible


def _fits(phrase: Phrase, shape: Shape) -> bool:
    return phrase.kind in (None, shape.kind) and phrase.colour in (None, shape.colour) and phrase.size in (None, shape.size)


def _anchor(phrase: Phrase, scene: Scene) -> int | None:
    if not isinstance(phrase.anchor, Phrase):
        return phrase.anchor
    found = referents(phrase.anchor, scene)
    return next(iter(found.sure)) if len(found.sure) == 1 and found.sure == found.possible else None


def holds(relation: str, scene: Scene, number: int, anchor: int) -> bool | None:
    """Whether shape `number` stands in the relation to shape `anchor`; None where people might differ."""
    if relation in LIKENESS:
        name = LIKENESS[relation]
        return getattr(scene.shapes[number], name) == getattr(scene.shapes[anchor], name)
    (x, y), (from_x, from_y) = scene.regions[number].centre, scene.regions[anchor].centre
    right, down = (x - from_x) / scene.side, (y - from_y) / scene.side
    along = _toward(DIRECTIONS[relation], right, down)
    if along <= LEVEL:
        return False
    return True if along >= max(CLEAR, 0.8 * abs(right), 0.8 * abs(down)) else None


def _toward(direction: tuple[int, int], x: float, y: float) -> float:
    return x * direction[0] + y * direction[1]


def _foremost(extreme: str, scene: Scene, named: set[int]) -> Referents:
    """Among the shapes named, the one that is furthest to that side or of that size, if it leads clearly."""
    scores = {number: _score(extreme, scene, number) for number in named}
    if not scores:
        return Referents(named, named)
    enough = max(scores.values()) - (math.log(BIGGER) if extreme in SCALES else LEAD)
    close = {number for number, score in scores.items() if score > enough}
    return Referents(close if len(close) == 1 else set(), close)


def _score(extreme: str, scene: Scene, number: int) -> float:
    if extreme in SCALES:
        return SCALES[extreme] * math.log(scene.shapes[number].radius)
    return _toward(EDGES[extreme], *scene.regions[number].centre) / scene.side


def phrases_for(scene: Scene, number: int) -> dict[str, list[Phrase]]:
    """Every phrase of the grammar, by family, that names this shape only."""
    shape = scene.shapes[number]
    full = Phrase(kind=shape.kind, colour=shape.colour)
    sized = full._replace(size=shape.size)
    nouns, sides = [Phrase(kind=shape.kind), full, sized], placements(scene, number)
    found = {
        "attribute": [full, full, full, full, Phrase(kind=shape.kind), Phrase(colour=shape.colour)],
        "size": [sized, Phrase(kind=shape.kind, size=shape.size), Phrase(colour=shape.colour, size=shape.size)],
        "relation": [noun._replace(relation=side.relation, anchor=side.anchor) for noun in nouns for side in sides],
        "extreme": _extremes(nouns[:2], scene),
    }
    return {name: [phrase for phrase in some if names_only(phrase, scene, number)] for name, some in found.items()}


def placements(scene: Scene, number: int) -> list[Phrase]:
    """The shape placed by each other one that kind and colour name and in whose direction this one clearly is."""
    anchors = {other: plain_name(scene, other) for other in scene.numbers if other != number}
    return [
        Phrase(relation=relation, anchor=anchor)
        for other, anchor in anchors.items()
        if anchor
        for relation in DIRECTIONS
        if holds(relation, scene, number, other)
    ]


def plain_name(scene: Scene, number: int) -> Phrase | None:
    """The shape by colour and kind, where that names it only."""
    name = Phrase(kind=scene.shapes[number].kind, colour=scene.shapes[number].colour)
    return name if names_only(name, scene, number) else None


def _extremes(nouns: list[Phrase], scene: Scene) -> list[Phrase]:
    """Superlatives compare: only nouns that several shapes answer to take one."""
    several = [noun for noun in nouns if len(referents(noun, scene).sure) > 1]
    return [noun._replace(extreme=extreme) for noun in several for extreme in (*EDGES, *SCALES)]


def expressions(scene: Scene, number: int, rng: np.random.Generator) -> list[str]:
    """Two or three different expressions that name this shape only, most of them by kind and colour."""
    families = phrases_for(scene, number)
    names = [name for name in FAMILIES if families[name]]
    weights = list(accumulate(FAMILIES[name] for name in names))
    found: dict[str, None] = {}
    for _ in range(int(rng.integers(2, 4))):
        phrases = families[names[bisect(weights, rng.random() * weights[-1])]]
        found[phrases[rng.integers(len(phrases))].text()] = None
    return list(found)


def absent(scene: Scene, number: int, rng: np.random.Generator) -> str | None:
    """An expression that is one word away from this shape and names nothing in the scene; None where none was found."""
    shape = scene.shapes[number]
    phrase = Phrase(kind=shape.kind, colour=shape.colour)
    match int(rng.integers(4)):
        case 0:
            phrase = phrase._replace(kind=str(rng.choice(KINDS)))
        case 1:
            phrase = phrase._replace(size=SIZES[1 - SIZES.index(shape.size)])
        case _:
            phrase = phrase._replace(colour=str(rng.choice(COLOURS)))
    return phrase.text() if names_nothing(phrase, scene) else None
