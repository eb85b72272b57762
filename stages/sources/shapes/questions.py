"""Captions of a shape, multiple-choice questions about one, and segmentation by pointing at another."""

from dataclasses import dataclass

import numpy as np

from stages.sources.shapes.language import DIRECTIONS, LIKENESS, Phrase, holds, names_only, placements
from stages.sources.shapes.scene import COLOURS, KINDS, Scene

PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
LETTERS = "ABCD"


@dataclass(frozen=True)
class Choice:
    """A question that carries its options, about the shape with this number."""

    number: int
    question: str
    answer: str


@dataclass(frozen=True)
class Pointer:
    """A request that points at one shape as <object1> and means another, <object2>."""

    question: str
    prompt: int
    target: int


def describe(scene: Scene, number: int, rng: np.random.Generator) -> str:
    """One sentence: size, colour, kind, place, and a neighbour where one is clearly to a side."""
    shape = scene.shapes[number]
    column, row = (min(int(3 * value / scene.side), 2) for value in scene.regions[number].centre)
    sentence = f"a {shape.size} {shape.colour} {shape.kind} {PLACES[row][column]}"
    sides = placements(scene, number)
    if not sides:
        return sentence
    return f"{sentence}, {sides[rng.integers(len(sides))].place()}"


def choices(scene: Scene, rng: np.random.Generator, count: int) -> list[Choice]:
    """Up to `count` questions, each about another shape, with four options of which one is right."""
    numbers = rng.permutation(len(scene.shapes))[:count]
    makers = (_which_colour, _which_shape, _which_neighbour)
    return [makers[rng.integers(len(makers))](scene, int(number), rng) for number in numbers]


def _which_colour(scene: Scene, number: int, rng: np.random.Generator) -> Choice:
    colour = scene.shapes[number].colour
    return _choice(number, "which colour is it?", colour, [other for other in COLOURS if other != colour], rng)


def _which_shape(scene: Scene, number: int, rng: np.random.Generator) -> Choice:
    kind = scene.shapes[number].kind
    return _choice(number, "which shape is it?", kind, [other for other in KINDS if other != kind], rng)


def _which_neighbour(scene: Scene, number: int, rng: np.random.Generator) -> Choice:
    """Which shape is to one side; a question about colour where no side has a clear neighbour."""
    others = [other for other in scene.numbers if other != number]
    sides = [(side, other) for side in DIRECTIONS for other in others if holds(side, scene, other, number)]
    if not sides:
        return _which_colour(scene, number, rng)
    side, right = sides[rng.integers(len(sides))]
    possible = {_noun(scene, other) for other in others if holds(side, scene, other, number) is not False}
    there = [_noun(scene, other) for other in scene.numbers]
    anywhere = [f"{COLOURS[rng.integers(len(COLOURS))]} {KINDS[rng.integers(len(KINDS))]}" for _ in range(8)]
    wrong = [noun for noun in dict.fromkeys([*there, *anywhere]) if noun not in possible]
    return _choice(number, f"which shape is {side} it?", _noun(scene, right), wrong[:3], rng)


def _noun(scene: Scene, number: int) -> str:
    return f"{scene.shapes[number].colour} {scene.shapes[number].kind}"


def _choice(number: int, question: str, right: str, wrong: list[str], rng: np.random.Generator) -> Choice:
    options = [right, *rng.permutation(wrong)[:3].tolist()]
    order = rng.permutation(4)
    lines = [f"{letter}. {options[index]}" for letter, index in zip(LETTERS, order, strict=True)]
    return Choice(number, f"{question} {' '.join(lines)}", lines[int(np.argmin(order))])


def pointers(scene: Scene, rng: np.random.Generator, count: int) -> list[Pointer]:
    """Up to `count` requests to segment the one shape that a phrase about <object1> names."""
    found = [
        Pointer(f"segment {phrase.text()}", prompt, target)
        for prompt in scene.numbers
        for target in scene.numbers
        if target != prompt
        for phrase in _pointing(scene, prompt, target)
        if names_only(phrase, scene, target)
    ]
    return [found[index] for index in rng.permutation(len(found))[:count]]


def _pointing(scene: Scene, prompt: int, target: int) -> list[Phrase]:
    shape = scene.shapes[target]
    nouns = [Phrase(), Phrase(kind=shape.kind), Phrase(colour=shape.colour)]
    beside = [
        noun._replace(relation=side, anchor=prompt)
        for side in DIRECTIONS
        if holds(side, scene, target, prompt)
        for noun in nouns
    ]
    return beside + [Phrase(relation=likeness, anchor=prompt) for likeness in LIKENESS]
