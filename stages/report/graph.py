"""A directed acyclic graph as inline SVG: layers from top to bottom, arrows that bend around the boxes between.

The usual four steps: drop the arrows that others imply, give each node the layer below its last predecessor, break long
arrows at each layer they cross, and order the layers by the middle of their neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

BOX_W, BOX_H, GAP_X, GAP_Y, BEND_W = 186, 42, 22, 30, 26
SWEEPS = 12


@dataclass(frozen=True)
class Node:
    """A box: its name, a second line below it, and the names of the boxes it is made from. `kind` is a CSS class."""

    name: str
    note: str
    parents: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class _Bend:
    """Where the arrow from `source` to `target` crosses a layer."""

    source: str
    target: str
    layer: int


Place = str | _Bend


def reduced(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same graph without the arrows that a longer way already implies."""
    above: dict[str, set[str]] = {}

    def ancestors(name: str) -> set[str]:
        if name not in above:
            above[name] = {up for parent in parents[name] for up in (parent, *ancestors(parent))}
        return above[name]

    return {
        name: [parent for parent in ups if not any(parent in ancestors(other) for other in ups if other != parent)]
        for name, ups in parents.items()
    }


def layers_of(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The layer of each node: 0 without parents, else one below the lowest of them."""
    found: dict[str, int] = {}

    def layer(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((layer(parent) for parent in parents[name]), default=-1)
        return found[name]

    for name in parents:
        layer(name)
    return found


def dag(nodes: Sequence[Node]) -> str:
    """The drawing; each box links to the element `#made-<name>` of the page."""
    known = {node.name for node in nodes}
    rows, chains = _rows(reduced({node.name: [p for p in node.parents if p in known] for node in nodes}))
    middle = _columns(rows, chains)
    width = max(middle[place] + _width(place) / 2 for row in rows for place in row) + 2
    top = {place: 2 + y * (BOX_H + GAP_Y) for y, row in enumerate(rows) for place in row}
    arrows = "".join(_arrow([(middle[place], top[place]) for place in chain]) for chain in chains)
    boxes = "".join(_box(node, middle[node.name], top[node.name]) for node in nodes)
    head = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    tip = f'<defs>{head}<path class="tip" d="M0,0.5 L8,4 L0,7.5 z"/></marker></defs>'
    height = len(rows) * (BOX_H + GAP_Y) - GAP_Y + 4
    size = f'viewBox="0 0 {width:.0f} {height}" style="max-width:{width:.0f}px"'
    return f'<svg class="dag" {size} role="img" aria-label="Lineage">{tip}{arrows}{boxes}</svg>'


def _rows(parents: Mapping[str, Sequence[str]]) -> tuple[list[list[Place]], list[list[Place]]]:
    """The places of each layer, and each arrow as the chain of places it passes."""
    layer = layers_of(parents)
    rows: list[list[Place]] = [[] for _ in range(1 + max(layer.values(), default=0))]
    for name in parents:
        rows[layer[name]].append(name)
    chains: list[list[Place]] = []
    for name, ups in parents.items():
        for up in ups:
            bends = [_Bend(up, name, between) for between in range(layer[up] + 1, layer[name])]
            for bend in bends:
                rows[bend.layer].append(bend)
            chains.append([up, *bends, name])
    return rows, chains


def _columns(rows: list[list[Place]], chains: list[list[Place]]) -> dict[Place, float]:
    """The middle of each place; `rows` are sorted on the way, sweeping down and up towards the neighbours' middles."""
    near: tuple[dict[Place, list[Place]], dict[Place, list[Place]]] = {}, {}
    for chain in chains:
        for above, below in pairwise(chain):
            near[0].setdefault(below, []).append(above)
            near[1].setdefault(above, []).append(below)
    middle: dict[Place, float] = {}
    for row in rows:
        middle |= _packed(row, [0.0] * len(row))
    for sweep in range(SWEEPS):
        side = near[sweep % 2]
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = {place: _mean([middle[other] for other in side.get(place, [])], middle[place]) for place in row}
            row.sort(key=wanted.__getitem__)
            middle |= _packed(row, [wanted[place] for place in row])
    left = min(middle[place] - _width(place) / 2 for row in rows for place in row) - 2
    return {place: x - left for place, x in middle.items()}


def _packed(row: list[Place], wanted: list[float]) -> dict[Place, float]:
    """Middles near those wanted, in the order of the row and without overlap: pushed from the left, from the right, halfway."""
    steps = [(_width(a) + _width(b)) / 2 + GAP_X for a, b in pairwise(row)]
    rightward, leftward = list(wanted), list(wanted)
    for n, step in enumerate(steps):
        rightward[n + 1] = max(rightward[n + 1], rightward[n] + step)
    for n, step in reversed(list(enumerate(steps))):
        leftward[n] = min(leftward[n], leftward[n + 1] - step)
    return {place: (a + b) / 2 for place, a, b in zip(row, rightward, leftward, strict=True)}


def _width(place: Place) -> float:
    return BOX_W if isinstance(place, str) else BEND_W


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _arrow(stops: list[tuple[float, float]]) -> str:
    """From the foot of the first box through the bends to the head of the last; `stops` are (middle, top)."""
    x, y = stops[0][0], stops[0][1] + BOX_H
    path = [f"M{x:.1f},{y:.1f}"]
    for number, (to_x, to_y) in enumerate(stops[1:], start=1):
        half = (y + to_y) / 2
        path.append(f"C{x:.1f},{half:.1f} {to_x:.1f},{half:.1f} {to_x:.1f},{to_y:.1f}")
        x, y = to_x, to_y
        if number < len(stops) - 1:
            y = to_y + BOX_H
            path.append(f"V{y:.1f}")
    return f'<path class="arrow" marker-end="url(#tip)" d="{" ".join(path)}"/>'


def _box(node: Node, middle: float, top: float) -> str:
    x = middle - BOX_W / 2
    box = f'<rect x="{x:.1f}" y="{top}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
    name = f'<text class="name" x="{middle:.1f}" y="{top + 17}" text-anchor="middle">{escape(node.name)}</text>'
    note = f'<text class="note" x="{middle:.1f}" y="{top + 33}" text-anchor="middle">{escape(node.note)}</text>'
    return f'<a href="#{anchor(node.name)}"><g class="node {node.kind}">{box}{name}{note}</g></a>'


def anchor(name: str) -> str:
    """The id under which the page speaks of an artifact."""
    return "made-" + "".join(letter if letter.isalnum() else "-" for letter in name)
