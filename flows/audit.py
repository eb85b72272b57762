"""Every artifact of a workspace, for `sailyard verify`: complete ones against their records, half-made ones shard by shard,
and stored features row by row. What is damaged can be made anew, and samples of what is not can be held against what comes
out today."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from flows.config import Project
from flows.graph import Step, artifacts, steps_of
from flows.mending import complete_work_of, is_mendable, mend_rows
from flows.states import IDENTITY, state_of
from schemas.artifact import RECORD, Artifact, damaged, is_shard, verify
from schemas.errors import BrokenArtifact, ConfigError, DataError
from schemas.features import FeatureSpec
from schemas.storage import Folder
from stages.soundness import ShardCheck, check_shard, drifting

# Beyond this part of the largest value, a feature that is made again is another one; rounding, another batch and another
# order of sums stay far below.
DIFFERENT = 0.05
_log = logging.getLogger(__name__)


@dataclass
class Damage:
    """What is wrong with an artifact, line by line; and which rows of which shards that is, all of them where none is named."""

    lines: list[str] = field(default_factory=list)
    shards: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Rows of features made again and held against those that are stored."""

    rows: int
    largest_difference: float
    faults: list[str]


class Check:
    """All of `sailyard verify` at one place, told line by line; the steps are needed to make anything again."""

    def __init__(self, url: str, steps: Sequence[Step] = ()):
        self._url, self._steps = url, steps
        self._found = artifacts(steps, Folder(url))
        self.faults: dict[str, list[str]] = {}
        self.healed: dict[str, str] = {}
        self.compared: dict[str, Comparison] = {}

    @classmethod
    def of(cls, project: Project) -> "Check":
        return cls(project.workspace, steps_of(project))

    def lines(self, *, mend: bool = False, again: int = 0, seed: int = 0) -> Iterator[str]:
        """What was mended, what is wrong now, and, if nothing is, what `again` rows of each teacher differ by."""
        if (mend or again) and not self._steps:
            raise ConfigError("nothing can be made again without the project", self._url, "Name its TOML file instead.")
        for step, done in heal(self._steps, self._found) if mend else ():
            self.healed[step] = done
            yield f"{step}: {done}"
        for name, found in audit(self._url):
            self.faults[name] = found
            yield from found or [f"{name}: as its record says"]
        for step, compared in compare(self._steps, self._found, again, seed) if again and not self.wrong else ():
            self.compared[step] = compared
            yield f"{step}: {compared.rows} rows made again, largest difference {compared.largest_difference:g}"
            yield from compared.faults

    @property
    def wrong(self) -> int:
        return sum(map(len, self.faults.values())) + sum(len(each.faults) for each in self.compared.values())

    def as_json(self) -> dict[str, Any]:
        compared = {step: asdict(each) for step, each in self.compared.items()}
        return {"workspace": self._url, "faults": self.faults, "healed": self.healed, "audit": compared}


def audit(url: str) -> Iterator[tuple[str, list[str]]]:
    """name -> faults of each artifact at or below `url`, none where all is well.

    A half-made one is no fault, for a run goes on with it: that is a note in the log, and only damaged shards are faults.
    """
    root = Folder(url.rstrip("/"))
    found = _artifacts(root)
    if not found:
        raise BrokenArtifact("there is no artifact here", url, "Name a workspace in which a run has begun.")
    for name, complete in found.items():
        folder = root.child(name) if name else root
        if not complete:
            _log.warning("%s: not complete: it has no record yet", name or url)
        faults = damage_of(folder, complete).lines
        if complete or faults:
            yield name or url, faults


def _artifacts(root: Folder) -> dict[str, bool]:
    """name of each artifact at or below `root` -> whether it is complete."""
    folders: dict[str, set[str]] = {}
    for path in root.tree():
        folder, _, file = path.rpartition("/")
        folders.setdefault(folder, set()).add(file)
    begun = {name: files for name, files in folders.items() if {RECORD, IDENTITY} & files or any(map(is_shard, files))}
    return {name: RECORD in files for name, files in begun.items()}


def damage_of(folder: Folder, complete: bool) -> Damage:
    if not complete:
        return _by_shard(folder, damaged(folder))
    damage = _by_shard(folder, verify(folder))
    artifact = _features(folder)
    if artifact is not None:
        _look_at_rows(artifact, damage)
    return damage


def _features(folder: Folder) -> Artifact | None:
    """The artifact, if it holds features as they are stored today."""
    try:
        artifact = Artifact.sealed(folder)
    except BrokenArtifact:
        return None
    except ValueError:  # a spec that says other things than today's
        _log.warning("%s: of an older version, not looked at row by row", folder.url)
        return None
    return artifact if artifact.table and artifact.table.spec else None


def _by_shard(folder: Folder, lines: list[str]) -> Damage:
    """The lines, with the numbers of the shards that they begin with."""
    names = (line.removeprefix(f"{folder.url}/").split(":")[0] for line in lines)
    return Damage(lines, {int(name.split(".")[0].split("-")[1]): [] for name in names if is_shard(name)})


def _look_at_rows(artifact: Artifact, damage: Damage) -> None:
    """Add what is wrong with single rows, and tell of shards that are unlike the others."""
    checks: dict[int, ShardCheck] = {}
    for number in range(artifact.shards):
        try:
            checks[number] = check_shard(artifact, number)
        except BrokenArtifact as error:
            damage.lines += [] if number in damage.shards else [str(error)]
            damage.shards[number] = []
            continue
        if faults := checks[number].faults:
            damage.shards[number] = sorted(faults)
            damage.lines += [f"{artifact.where}/{artifact.shard_name(number)}: row {at}: {what}" for at, what in faults.items()]
    for number, errors in drifting(checks).items():
        _log.warning(
            "%s: shard %d drifts: its channels' means are %.1f standard errors from those of the other shards; "
            "`verify --audit` makes rows again to compare",
            *(artifact.where, number, errors),
        )


def heal(steps: Sequence[Step], found: Mapping[str, Artifact]) -> Iterator[tuple[str, str]]:
    """(step, what was done) for each artifact that is damaged: exactly the damaged rows are made anew, or whole
    shards where no row can be named, and what was sealed is sealed again."""
    broken: set[str] = set()
    for step in steps:
        artifact = found[step.name]
        if not artifact.folder.exists():
            continue
        damage = damage_of(artifact.folder, artifact.folder.exists(RECORD))
        if damage.lines:
            done = _heal(step, found, damage, broken)
            if not done:
                broken.add(step.name)
            yield step.name, done or f"{len(damage.lines)} wrong, and left as they are. Run with --rebuild {step.name}"


def _heal(step: Step, found: Mapping[str, Artifact], damage: Damage, broken: set[str]) -> str:
    """What was done; empty where nothing can be: what is made as a whole, from what is broken itself, or otherwise today."""
    artifact = found[step.name]
    if not is_mendable(step) or broken & {*step.roles.values(), *step.gates.values()}:
        return ""
    lost = _drop_unreadable_record(artifact)
    if state_of(artifact, step.inputs_in(found)).kind == "stale":
        return ""
    mine = _with_doubtful(step, found, {number: rows for number, rows in damage.shards.items() if number < artifact.shards})
    mend_rows(step, found, {number: rows or None for number, rows in mine.items()})
    whole = sum(not rows for rows in mine.values())
    made = f"{sum(map(len, mine.values()))} rows and {whole} whole shards made anew"
    return made + ("; its record cannot be read and is gone, run to seal it again" if lost else "")


def _with_doubtful(step: Step, found: Mapping[str, Artifact], shards: Mapping[int, list[int]]) -> dict[int, list[int]]:
    """The rows of each shard with those that are in doubt besides: a CRC is of a feature alone, and says nothing of the other
    columns of a shard that does not give its digest."""
    from stages.mend import Published

    published = Published(complete_work_of(step, found))
    return {number: published.with_doubtful(number, rows) if rows else [] for number, rows in shards.items()}


def _drop_unreadable_record(artifact: Artifact) -> bool:
    """Whether there was one: it proves nothing, and the shards prove themselves."""
    try:
        artifact.record()
    except BrokenArtifact:
        artifact.folder.remove(RECORD)
        return True
    return False


def compare(steps: Sequence[Step], found: Mapping[str, Artifact], count: int, seed: int) -> Iterator[tuple[str, Comparison]]:
    """step -> how `count` random rows of its features, made again, differ from those that are stored."""
    for step in steps:
        artifact = found[step.name]
        holds_features = is_mendable(step) and artifact.table is not None and artifact.table.spec is not None
        if holds_features and state_of(artifact, step.inputs_in(found)).kind == "done":
            yield step.name, _compare(step, found, count, np.random.default_rng(seed))


def _compare(step: Step, found: Mapping[str, Artifact], count: int, random: np.random.Generator) -> Comparison:
    from stages.mend import Mender

    artifact, mender = found[step.name], Mender(complete_work_of(step, found))
    assert artifact.table is not None and artifact.table.spec is not None
    made = [(n, row) for n in range(artifact.shards) for row in _made_rows(artifact, n)]
    chosen = sorted(made[at] for at in random.choice(len(made), min(count, len(made)), replace=False))
    differences, faults = [0.0], []
    for number in sorted({number for number, _ in chosen}):
        rows = [row for n, row in chosen if n == number]
        stored, again = artifact.read(number).take(pa.array(rows)), mender.made_again(number, rows)
        for index, row in enumerate(rows):
            fault, difference = _difference(stored.slice(index, 1), again.slice(index, 1), artifact.table.spec)
            differences.append(difference)
            faults += [f"{artifact.where}/{artifact.shard_name(number)}: row {row}: {fault}"] if fault else []
    return Comparison(len(chosen), max(differences), faults)


def _made_rows(artifact: Artifact, number: int) -> list[int]:
    return [row for row, error in enumerate(artifact.read(number, ["error"]).column("error").to_pylist()) if error is None]


def _difference(stored: pa.Table, again: pa.Table, spec: FeatureSpec) -> tuple[str, float]:
    """What is wrong, if anything is, and the largest difference between the two maps of one row."""
    (old,), (new,) = stored.to_pylist(), again.to_pylist()
    if new["error"]:
        return f"made again, it fails: {new['error']}", 0.0
    try:
        a, b = (spec.decode(row["feature"], row["height"], row["width"]) for row in (old, new))
    except DataError as error:
        return str(error), 0.0
    if a.shape != b.shape:
        return f"a map of {a.shape}, made again of {b.shape}", 0.0
    difference = float(np.abs(a - b).max())
    largest = float(np.abs(a).max())
    wrong = not difference <= DIFFERENT * largest
    return f"made again, it differs by {difference:g} where its largest value is {largest:g}" if wrong else "", difference
