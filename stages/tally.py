"""What has come of a stage so far, and of all of it in the end."""

from dataclasses import dataclass

from schemas.artifact import Artifact
from stages.base import Outcome, Progress, ShardResult, judge


@dataclass
class Tally:
    """The shards that are there, with those that lay there before."""

    output: Artifact
    progress: Progress
    shards: int
    rows: int
    failed: int
    seconds: float = 0.0
    made: int = 0

    def add(self, result: ShardResult) -> None:
        self.shards += 1
        self.made += 1
        self.rows += result.rows
        self.failed += result.failed
        self.seconds += result.seconds
        self.progress(self.shards, self.output.shards, "shards", f"{self.rows} rows, {self.failed} failed")

    def outcome(self, max_error_rate: float) -> Outcome:
        lines = judge(self.output, max_error_rate)
        return Outcome({"seconds_of_work": round(self.seconds, 3), "shards_made": self.made}, lines)
