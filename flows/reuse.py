"""How often a picture is looked at: what it is worth that a teacher sees it once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.config import Project
from flows.states import state_of
from schemas.artifact import Artifact


@dataclass(frozen=True)
class Reuse:
    """`pictures` of the pool under `names` file names; training has `samples` of `used` of them, and shows `shown` in all."""

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
    count, used = _trained_on(samples)
    return Reuse(names, pictures, count, used, project.train.steps * project.train.batch)


def _trained_on(samples: Artifact) -> tuple[int, int]:
    """How many samples, of how many pictures. A picture's samples all lie in one shard, so no more than a shard is held."""
    count = used = 0
    for rows in samples.iterate(["image_key", "split"]):
        keys = [row["image_key"] for row in rows.to_pylist() if row["split"] == "train"]
        count, used = count + len(keys), used + len(set(keys))
    return count, used
