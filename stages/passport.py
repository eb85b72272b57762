"""A teacher -> its passport: what made its features, kept so that no later worker mixes others among them."""

from pydantic import ValidationError

from schemas.artifact import Artifact
from schemas.errors import BrokenArtifact, StaleArtifact
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from teachers.base import NetworkConfig, Teacher
from teachers.build import build_teacher
from teachers.config import TeacherConfig
from teachers.passport import Passport, changed_facts, drift, passport, passport_of

FILE = "passport.json"
NAMED = 3


class PassportStage(JobStage):
    """The teacher is built, shown its golden pictures, and let go."""

    teacher: TeacherConfig

    def table(self) -> Table | None:
        return None

    def opens(self) -> NetworkConfig:
        return self.teacher

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        made = passport(self.teacher, resources.device, resources.threads)
        output.folder.write(FILE, made.model_dump_json().encode())
        progress(1, 1, "teachers")
        return Outcome({"digest": made.digest, "device": made.device, "versions": made.versions})


def read(made: Artifact) -> Passport:
    """The passport that lies in `made`; raises `BrokenArtifact` where none can be read."""
    where, remedy = made.folder.path(FILE), f"Run with --rebuild {made.name}."
    try:
        return Passport.model_validate_json(made.folder.read(FILE))
    except FileNotFoundError:
        raise BrokenArtifact("the teacher's passport is missing", where, remedy) from None
    except ValidationError as error:
        fault = error.errors()[0]
        reason = f"{'.'.join(str(part) for part in fault['loc'])} {fault['msg']}".strip()
        raise BrokenArtifact(f"the teacher's passport cannot be read: {reason}", where, remedy) from None


def require_same(made: Artifact, config: TeacherConfig, resources: Resources, teacher: Teacher | None = None) -> list[str]:
    """What changed about the teacher without moving its features, a line each. Raises `StaleArtifact` where they have moved.

    `teacher` is the one that was built of `config` on `resources.device`; without it, one is built for this.
    """
    before = read(made)
    device, threads = resources.device, resources.threads
    now = passport_of(teacher or build_teacher(config, device, threads), config, device, before.band)
    moved, facts = drift(before, now), changed_facts(before, now)
    if moved:
        more = [f"and {len(moved) - NAMED} more statistics"] if len(moved) > NAMED else []
        remedy = f"Bring back what changed, or run with --rebuild {made.name} and --rebuild of the features made under it."
        raise StaleArtifact(f"the teacher's features moved ({'; '.join(facts + moved[:NAMED] + more)})", made.where, remedy)
    return facts
