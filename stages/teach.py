"""IMAGES and ANNOTATIONS -> a teacher's weights: a network that has learned the annotated regions, in a folder as the hub has
it.

It learns from pictures that nothing is evaluated on, as the student does, and is judged on others: as the segmenter that later
steps build of this folder, beside the same network with random weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from schemas.annotations import STATEMENTS
from schemas.artifact import Artifact
from schemas.errors import ConfigError, DataError
from schemas.pictures import decode, sound_bytes
from schemas.regions import Segment
from schemas.storage import Folder
from schemas.tables import Table, revive
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from teachers.config import TeacherConfig
from teachers.mask2former.config import Learning, Mask2FormerConfig
from teachers.mask2former.quality import NOBODY, Tally

if TYPE_CHECKING:
    from teachers.mask2former.learn import Lesson

AVERAGED = 20  # steps at either end that the summary takes a mean of
Labels = Mapping[str, int]


def taught(teacher: TeacherConfig, folder: Folder) -> TeacherConfig:
    """The teacher, its weights to be read from where `TeachStage` put them."""
    return teacher.model_copy(update={"folder": folder.path() if folder.is_local else folder.url})


@dataclass(frozen=True)
class Scene:
    """A picture file and its regions."""

    data: bytes
    regions: list[Segment]


class TeachStage(JobStage):
    """Inputs: `images` and `annotations`. Crowds, and regions without a category, are nobody's to find."""

    teacher: Mask2FormerConfig
    learning: Learning = Learning()

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        labels = labels_of(inputs["annotations"], self.teacher)
        scenes, held_out = some_scenes(inputs, self.learning.pictures, self.learning.held_out)
        history = self._learn(scenes, labels, output, resources, progress)
        ends = {"first": _mean(history[:AVERAGED]), "last": _mean(history[-AVERAGED:])}
        scores = self._scores(held_out, labels, output, resources)
        return Outcome({"pictures": len(scenes), "held_out": len(held_out), "loss": ends, "scores": scores})

    def _learn(
        self,
        scenes: Sequence[Scene],
        labels: Labels,
        output: Artifact,
        resources: Resources,
        progress: Progress,
    ) -> list[dict[str, float]]:
        """The losses of each step; the weights lie in `output` then."""
        from teachers.mask2former import learn

        order = _Order(self.teacher.seed, len(scenes), self.learning.batch)

        def lessons(step: int) -> list["Lesson"]:
            return [_lesson(scenes[index], labels, self.teacher) for index in order.of(step)]

        def report(step: int, losses: Mapping[str, float]) -> None:
            progress(step, self.learning.steps, "steps", " ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))

        learn.set_threads(resources.threads)
        network = learn.untaught(self.teacher, {label: name for name, label in labels.items()})
        history = learn.learn(network, self.learning, lessons, seed=self.teacher.seed, device=resources.device, report=report)
        for name, data in learn.files(network).items():
            output.folder.write(name, data)
        return history

    def _scores(
        self, scenes: Sequence[Scene], labels: Labels, output: Artifact, resources: Resources
    ) -> dict[str, dict[str, float]]:
        """Of the teacher, and of chance: the random teacher of its sizes, all of whose regions count."""
        chance = self.teacher.model_copy(update={"weights": "random", "min_score": 0.0, "min_overlap": 0.0})
        unnamed = {f"LABEL_{label}": label for label in labels.values()}
        return {
            "taught": judge(taught(self.teacher, output.folder), scenes, labels, labels, resources),
            "random": judge(chance, scenes, labels, unnamed, resources),
        }


def labels_of(annotations: Artifact, teacher: Mask2FormerConfig) -> dict[str, int]:
    """The label of each category of the pool: things from 0 on, stuff from the teacher's `things` on, by name."""
    found: set[tuple[bool, str]] = set()
    for rows in annotations.iterate(["objects"]):
        objects = rows.column("objects").combine_chunks().flatten()
        names, things, crowds = (objects.field(name).to_pylist() for name in ("category", "is_thing", "is_crowd"))
        found |= {(thing, name) for name, thing, crowd in zip(names, things, crowds, strict=True) if name and not crowd}
    things, stuff = (sorted(name for kind, name in found if kind is is_thing) for is_thing in (True, False))
    assert teacher.sizes is not None
    if len(things) > teacher.things or len(stuff) > teacher.sizes.labels - teacher.things:
        what = f"the pictures show {len(things)} kinds of things and {len(stuff)} of stuff, the teacher has fewer labels"
        raise ConfigError(what, "teachers", f"Set its things = {len(things)} and sizes.labels = {len(things) + len(stuff)}.")
    return dict(zip(things, range(len(things)), strict=True)) | {name: teacher.things + n for n, name in enumerate(stuff)}


def some_scenes(inputs: Inputs, most: int, held_out: int) -> tuple[list[Scene], list[Scene]]:
    """Scenes to learn from, and others to be judged on. These are of pictures with anything to be evaluated, and where no
    picture has, the first ones. A key is a digest, and it decides the order: they are a random sample, and always the same."""
    shown, kept = list[Scene](), list[Scene]()
    for is_evaluated, scene in _scenes(inputs):
        pile, enough = (kept, held_out) if is_evaluated else (shown, most + held_out)
        pile.extend([scene] if len(pile) < enough else [])
        if len(kept) >= held_out and len(shown) >= most:
            break
    if not kept:
        kept, shown = shown[:held_out], shown[held_out:]
    if not shown:
        raise DataError("no picture with regions is left to learn from", inputs["annotations"].where, "Give it more pictures.")
    return shown[:most], kept[:held_out]


def _scenes(inputs: Inputs) -> Iterator[tuple[bool, Scene]]:
    """(whether anything is evaluated on it, the scene), of each picture with regions."""
    images, annotations = inputs["images"], inputs["annotations"]
    for number in range(images.shards):
        told = annotations.read(number, ["objects", *STATEMENTS, "error"]).to_pylist()
        pictures = images.read(number, ["image_key", "bytes", "sha256"])
        for row, said in enumerate(told):
            regions = [each for each in revive(list[Segment], said["objects"]) if each.category and not each.is_crowd]
            if regions and not said["error"]:
                is_evaluated = any(
                    statement["split"] == "evaluation" for name in STATEMENTS for statement in said.get(name) or ()
                )
                yield is_evaluated, Scene(sound_bytes(pictures.slice(row, 1).to_pylist()[0]), regions)


@dataclass(frozen=True)
class _Order:
    """Which of `count` pictures each step shows: all of them in a random order, then all in another."""

    seed: int
    count: int
    batch: int

    def of(self, step: int) -> list[int]:
        return [self._at(place) for place in range(step * self.batch, (step + 1) * self.batch)]

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, self.count)
        return int(np.random.default_rng([self.seed, epoch]).permutation(self.count)[index])


def _lesson(scene: Scene, labels: Labels, teacher: Mask2FormerConfig) -> "Lesson":
    from teachers.mask2former import learn

    masks_THW = np.stack([region.rle.mask() for region in scene.regions])
    return learn.lesson(decode(scene.data), masks_THW, [labels[region.category] for region in scene.regions], teacher)


def _mean(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(sum(row[name] for row in history) / len(history), 6) for name in history[0]}


def judge(
    teacher: TeacherConfig, scenes: Sequence[Scene], labels: Labels, named: Labels, resources: Resources
) -> dict[str, float]:
    """How well a segmenter finds the regions of these scenes; `named` are the labels by the names that it gives them."""
    from teachers.build import build_segmenter

    segmenter, tally = build_segmenter(teacher, resources.device, resources.threads), Tally(1 + max(labels.values()))
    for scene in scenes:
        proposals = segmenter.segments(decode(scene.data))
        tally.add(
            [(labels[region.category], region.rle.mask()) for region in scene.regions],
            [(named.get(proposal.category, NOBODY), proposal.mask_HW) for proposal in proposals],
        )
    return tally.scores()
