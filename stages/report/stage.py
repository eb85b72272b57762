"""ReportStage: whatever artifacts there are -> report.html for people and metrics.json for programs."""

import json

from schemas.artifact import Artifact
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources


class ReportStage(JobStage):
    """Every role but `images` may be missing, the report shows what there is. `examples` is the number of pictures a sheet;
    `meteor` scores captions by METEOR too, which needs nltk and WordNet."""

    title: str = "Sailyard"
    examples: int = 12
    seed: int = 0
    meteor: bool = False

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        from stages.report.evidence import Report
        from stages.report.write import write

        report = Report.gather(inputs, title=self.title, examples=self.examples, seed=self.seed, meteor=self.meteor)
        output.folder.write("metrics.json", (json.dumps(report.metrics, indent=1, allow_nan=False) + "\n").encode())
        output.folder.write("report.html", write(report, progress).encode())
        numbers = {name: report.metrics[name] for name in ("trained", "untrained") if name in report.metrics}
        return Outcome(numbers | {"random_teachers": report.random_teachers})
