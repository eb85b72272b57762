"""Small real stages, and steps made of them, for tests of the machinery that carries them out."""

from pathlib import Path

import pyarrow as pa

from flows.graph import Step
from schemas.artifact import Artifact
from schemas.errors import StageFailed
from schemas.tables import SEGMENTS, Table
from stages.base import Inputs, JobStage, MapStage, Outcome, Progress, Resources, ShardFunction, Tables

SHARDS = 4


class Count(JobStage):
    """`rows` rows a shard, the shards that are missing."""

    rows: int = 3

    def table(self) -> Table:
        return SEGMENTS

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        for number in range(output.shards):
            keys = [f"{number}-{row}" for row in range(self.rows)]
            output.write(number, SEGMENTS.rows([{"image_key": key, "segments": []} for key in keys]))
            progress(number + 1, output.shards, "shards")
        return Outcome({"rows": self.rows * output.shards})


class Copy(MapStage):
    """Copies its input and notes each shard that it makes in `diary`. While `trap` exists it fails at the third shard, and
    the failure takes the trap away."""

    diary: str
    trap: str | None = None

    def identity(self) -> dict[str, str]:
        return {}

    def table(self) -> Table:
        return SEGMENTS

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return self.copy

    def copy(self, inputs: Tables) -> pa.Table:
        (rows,) = inputs.values()
        shard = rows.column("image_key")[0].as_py().split("-")[0]
        if self.trap and Path(self.trap).exists() and shard == "2":
            Path(self.trap).unlink()
            raise StageFailed("the trap snapped", f"shard {shard}", "Go on.")
        with Path(self.diary).open("a") as diary:
            diary.write(f"{shard}\n")
        return rows


class Notes(JobStage):
    """Plain files: one a shard of its input, the last only once `key` is there."""

    text: str = "a"
    key: str | None = None

    def identity(self) -> dict[str, str]:
        return {"text": self.text}

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        output.folder.write("notes/first.txt", self.text.encode())
        if self.key and not Path(self.key).exists():
            raise StageFailed("there is no key", self.key, "Put one there.")
        output.folder.write("notes/last.txt", self.text.encode())
        return Outcome()


def chain(diary: Path, *, rows: int = 3, trap: Path | None = None, text: str = "a", key: Path | None = None) -> list[Step]:
    """counted -> group/copied -> noted"""
    resources = Resources(executor="local")
    copy = Copy(diary=str(diary), trap=str(trap) if trap else None)
    notes = Notes(text=text, key=str(key) if key else None)
    return [
        Step("counted", "build_data", Count(rows=rows), {}, {}, SHARDS, resources),
        Step("group/copied", "build_data", copy, {"counted": "counted"}, {}, SHARDS, resources),
        Step("noted", "build_data", notes, {"copied": "group/copied"}, {}, SHARDS, resources),
    ]
