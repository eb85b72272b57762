"""IMAGES and annotation files -> ANNOTATIONS, with Beam: each file is read once, taken apart into pages, one a picture, and
every page finds its picture by the name or the number it uses. Shard k is made from the pages of its pictures.

A statement that cannot be used is named in the `faults` of its picture's row; one whose picture is not in the pool, among
the record's failures. What was found altogether is the data card in the record's summary.
"""

import functools
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from schemas.artifact import Artifact
from schemas.config import Compat, later
from schemas.storage import Folder
from schemas.tables import ANNOTATIONS, Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources, judge
from stages.pool import lacking, run_pipeline
from stages.sources.card import data_card
from stages.sources.coco import Address
from stages.sources.config import CocoSource, SourceFile
from stages.sources.draft import Draft
from stages.sources.listing import annotation_digests
from stages.sources.pages import NOWHERE, TEXT_ALONE, Page, pages, place

LOST = ".statements.tmp"  # a temporary name: it is no file of the artifact, and what a killed run leaves is swept up
MOST_LINES = 1000
Spot = tuple[int, str]  # shard and image_key


class AnnotationsStage(JobStage):
    """What the files of `coco` say about the pool `images`; without it, what those say that the input `source` holds.

    With `compat = "paper"` files are read with the mistakes that the release makes (docs/paper.md): references of the training
    split in the words of `raw`, "others." with a full stop, Osprey's regions as plain text, and the tags of grounded captions
    wherever its arithmetic puts them."""

    coco: CocoSource | None = None
    compat: Compat = later("correct")

    def table(self) -> Table:
        return ANNOTATIONS

    def outside(self) -> dict[str, str]:
        return annotation_digests(self.coco) if self.coco else {}

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        files = (self.coco or CocoSource.of_shapes(inputs["source"].where)).files(self.compat)
        aside = output.folder.child(f"lost-{uuid.uuid4().hex}")  # of this run alone: another one at once has its own
        build = functools.partial(_annotations, inputs["images"], files, output, sorted(lacking(output)), aside)
        try:
            run_pipeline(build, output, resources, functools.partial(progress, note=f"{len(files)} files"))
            lost = json.loads(aside.read(LOST)) if aside.exists(LOST) else {"statements": {}, "lines": []}
        finally:
            aside.remove()
        lines = judge(output, resources.max_error_rate)
        return Outcome(data_card(output) | {"without_picture": lost["statements"]}, lines + lost["lines"])


def _annotations(
    images: Artifact, files: list[SourceFile], output: Artifact, missing: list[int], aside: Folder, pipeline: Any
) -> None:
    import apache_beam as beam

    spots = pipeline | "pool" >> beam.Create(range(images.shards)) | "names" >> beam.FlatMap(_names, images)
    told = pipeline | "files" >> beam.Create(files) | "pages" >> beam.FlatMap(pages)
    by_name = told | "named" >> beam.Filter(lambda page: page.address[0] == "name") | "name" >> beam.Map(_addressed)
    by_id = told | "numbered" >> beam.Filter(lambda page: page.address[0] != "name") | "number" >> beam.Map(_addressed)
    named = _meet(beam, "by name", spots, by_name)
    numbered = _meet(beam, "by number", named.ids, by_id)

    wanted = pipeline | "missing shards" >> beam.Create([(number, None) for number in missing])
    placed = (named.placed, numbered.placed) | "placed" >> beam.Flatten()
    here = placed | "only missing" >> beam.Filter(lambda item: item[0] in missing)
    joined = {"wanted": wanted, "pages": here} | "one shard" >> beam.CoGroupByKey()
    _ = joined | "write" >> beam.MapTuple(lambda number, groups: _write(number, groups["pages"], images, files, output))

    lost = (named.lost, numbered.lost) | "lost" >> beam.Flatten() | "together" >> beam.GroupByKey()
    _ = lost | "write lost" >> beam.MapTuple(lambda _, found: _write_lost(found, files, aside))


def _names(number: int, images: Artifact) -> Iterator[tuple[Address, Spot]]:
    for row in images.read(number, ["image_key", "aliases"]).to_pylist():
        for alias in row["aliases"]:
            yield ("name", alias), (number, row["image_key"])


def _addressed(page: Page) -> tuple[Address, Page]:
    return page.address, page


def _meet(beam: Any, label: str, spots: Any, told: Any) -> Any:
    """Pages with the spot of their picture (`placed`), the spots of the numbers that they give it (`ids`), and the pages
    whose picture is not there (`lost`)."""
    met = {"spots": spots, "pages": told} | label >> beam.CoGroupByKey()
    return met | f"{label}: spots" >> beam.FlatMap(_met).with_outputs("placed", "ids", "lost")


def _met(item: tuple[Address, dict[str, Iterable[Any]]]) -> Iterator[Any]:
    from apache_beam.pvalue import TaggedOutput

    address, groups = item
    spots = sorted(set(groups["spots"]))
    for page in groups["pages"]:
        if len(spots) != 1:
            if page.statements:
                yield TaggedOutput("lost", (None, (page.file, len(page.statements), _why_lost(address, len(spots)))))
            continue
        (number, key), *_ = spots
        yield TaggedOutput("placed", (number, (key, page)))
        for each in page.ids:
            yield TaggedOutput("ids", (("id", each), (number, key)))


def _why_lost(address: Address, spots: int) -> str:
    kind, name = address
    if address == TEXT_ALONE:
        return "it has no picture, and text alone is not learned from"
    if address == NOWHERE:
        return "the record does not say which picture it speaks of"
    if spots > 1:
        return f"the image id {name} stands for {spots} different pictures"
    if kind == "id":
        return f"no file says which picture has the image id {name}, or the pool lacks it"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return f"the name {name!r} climbs out of its folder"
    return f"the pool has no picture {name!r}"


def _write_lost(found: Iterable[tuple[int, int, str]], files: list[SourceFile], aside: Folder) -> None:
    """Beam hands nothing back to the driver but through the store."""
    counts: dict[str, int] = {}
    lines = []
    for number, count, why in sorted(found):
        label = files[number].label
        counts[label] = counts.get(label, 0) + count
        lines.append(f"{label}: {why}: {count} statements")
    aside.write(LOST, json.dumps({"statements": counts, "lines": lines[:MOST_LINES]}).encode())


def _write(number: int, told: Iterable[tuple[str, Page]], images: Artifact, files: list[SourceFile], output: Artifact) -> None:
    said: dict[str, list[Page]] = {}
    for key, page in told:
        said.setdefault(key, []).append(page)
    pictures = images.read(number, ["image_key", "width", "height", "error"]).to_pylist()
    output.write(number, ANNOTATIONS.rows([_row(picture, said.get(picture["image_key"], []), files) for picture in pictures]))


def _row(picture: dict[str, Any], said: list[Page], files: list[SourceFile]) -> dict[str, Any]:
    """The picture's row; files speak in their order, and of two pages of one file that of the first name speaks first."""
    draft = Draft(picture["width"], picture["height"])
    for page in sorted(said, key=lambda page: (page.file, page.address)):
        if not picture["error"]:
            place(draft, files[page.file], page)
        elif page.statements:
            draft.fault("no pixels", files[page.file], f"{len(page.statements)} statements", "the picture cannot be decoded")
    return {
        "image_key": picture["image_key"],
        "width": picture["width"],
        "height": picture["height"],
        "objects": draft.objects,
        "expressions": draft.expressions,
        "captions": draft.captions,
        "choices": draft.choices,
        "references": draft.references,
        "conversations": draft.conversations or None,
        "faults": draft.faults,
        "error": picture["error"],
    }
