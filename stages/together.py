"""Several columns of teacher features in one pass: each picture is read and decoded once and shown to every teacher.

The columns stay artifacts of their own, with their own failed rows, digests and records; only their shards are made side by
side. What ends one of them at once, such as a teacher that cannot be opened, ends the pass.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas.artifact import Artifact, Part
from stages.base import Make, Resources, ShardResult
from stages.deadline import heartbeat
from stages.executor import Work
from stages.features import FeaturesStage, Lane, at_once, extract


@dataclass(frozen=True)
class Together:
    """Works of `FeaturesStage` over the same pictures, with the same resources. To whoever carries it out it is the first of
    them. Of the others it makes the same shards, each after the first's: what is lost in between their own steps make."""

    works: tuple[Work, ...]

    @property
    def output(self) -> Artifact:
        return self.works[0].output

    @property
    def resources(self) -> Resources:
        return self.works[0].resources

    def open(self) -> Make:
        lanes = [_lane(work) for work in self.works]
        return lambda number: self._make(lanes, number)

    def _make(self, lanes: Sequence[Lane], number: int) -> ShardResult:
        """What became of the first one's shard, and the seconds that all of them took."""
        start = time.perf_counter()
        columns = extract(lanes, self.works[0].inputs["images"].read(number), **at_once(self.resources))
        part, *_ = [_written(work, number, column) for work, column in zip(self.works, columns, strict=True)]
        return ShardResult(number, part.rows, part.failed, part.bytes, time.perf_counter() - start)


def _written(work: Work, number: int, column: pa.Table) -> Part:
    part = work.output.write(number, column)
    heartbeat()
    return part


def _lane(work: Work) -> Lane:
    assert isinstance(work.stage, FeaturesStage)
    return work.stage.lane(work.resources, work.whole)
