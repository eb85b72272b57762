"""The quickstart's pictures: scenes rendered with known ground truth, written as a dataset in the public formats."""

from schemas.artifact import Artifact
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from stages.sources.shapes.config import ShapesConfig


class SourceStage(JobStage):
    shapes: ShapesConfig

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        from stages.sources.shapes import write_shapes

        names = write_shapes(self.shapes, output.folder, lambda done, total: progress(done, total, "scenes"))
        return Outcome({"files": len(names), "scenes": self.shapes.train + self.shapes.evaluation})
