"""How often a picture is looked at: what it is worth that a teacher sees it once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.config import Project
from flows.states import state_of
from schemas.artifact import Artifact


@dataclass(frozen=True)
class Reuse:
    """`pictures` of the pool under `names` file names; training has `samples` of `used` of them, and shows `shown` in all. What
    it leaves out, because the picture or a feature of it failed or it is also evaluated on, is not among them."""

    names: int
    pictures: int
    samples: int | None = None
    used: int | None = None
    shown: int | None = None

    @property
    def samples_a_picture(self) -> float | None:
        return self.samples / self.used if self.samples is not None and self.used else None

    @property
    def looks_a_picture(self) -> float | None:
        """The reuse factor: samples shown in the whole training for each picture that is used in it."""
        return self.shown / self.used if self.shown is not None and self.used else None

    def as_json(self) -> dict[str, Any]:
        counts = {name: value for name, value in vars(self).items() if value is not None}
        factors = {"samples_a_picture": self.samples_a_picture, "looks_a_picture": self.looks_a_picture}
        return counts | {name: value for name, value in factors.items() if value is not None}

    def __str__(self) -> str:
        line = f"pictures: {self.pictures} under {self.names} names"
        if not self.used:
            return line
        line += f"; training: {self.samples} samples of {self.used} pictures, {self.samples_a_picture:.1f} a picture"
        return f"{line}; it shows {self.shown}, each picture {self.looks_a_picture:.1f} times"


def reuse_of(project: Project, found: Mapping[str, Artifact]) -> Reuse | None:
    """As far as the tables lie there, made of today's config; None where not even the pictures do."""
    images, samples = found["images"], found["samples"]
    record = images.record() if state_of(images).kind == "done" else None
    if record is None:
        return None
    names, pictures = record.summary["files"], record.rows - record.failed
    if state_of(samples).kind != "done":
        return Reuse(names, pictures)
    count, used = _trained_on(samples, [images, *_columns(project, found)])
    return Reuse(names, pictures, count, used, project.train.steps * project.train.batch)


def _columns(project: Project, found: Mapping[str, Artifact]) -> Iterator[Artifact]:
    """The features that training reads, as far as they lie there: until then nobody knows which of them fail."""
    columns = (found[f"features/{name}"] for name in project.loss.distillation)
    return (column for column in columns if state_of(column).kind == "done")


def _trained_on(samples: Artifact, beside: Sequence[Artifact]) -> tuple[int, int]:
    """How many samples, of how many pictures, training has: those whose row in each table `beside` is sound, and that are of no
    picture which is evaluated on. A picture's samples all lie in one shard, so no more than a shard is held."""
    count = used = 0
    for shard in range(samples.shards):
        rows = samples.read(shard, ["image_key", "split"]).to_pylist()
        unusable = {row["image_key"] for row in rows if row["split"] == "evaluation"}
        for table in beside:
            failed = table.read(shard, ["image_key", "error"]).to_pylist()
            unusable |= {row["image_key"] for row in failed if row["error"]}
        keys = [row["image_key"] for row in rows if row["split"] == "train" and row["image_key"] not in unusable]
        count, used = count + len(keys), used + len(set(keys))
    return count, used
