"""Steps that share a pass: whose shards are made along with whose, and that nothing but the pass is shared."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.config import ColumnConfig, Project
from flows.distill import Run
from flows.estimate import estimate
from flows.graph import Step, artifacts, steps_of
from flows.probe import Measured
from flows.states import StepResult, clear, state_of
from flows.steps import make_step
from flows.works import along
from schemas.artifact import Artifact
from schemas.config import parse
from schemas.errors import StageFailed, StaleArtifact
from schemas.storage import Folder
from schemas.tables import IMAGES
from stages.forecast import ONE_PASS, ONE_PASS_BY, Prices, Range, StepForecast, compared
from stages.passport import PassportStage
from teachers.mask2former.config import Mask2FormerConfig
from tests.flows.small import digests
from tests.flows.test_plan import by_hand

SAM2, MASK2FORMER = COLUMNS = ("features/sam2", "features/mask2former")


def project(workspace: Path, **resources: Any) -> Project:
    fields = {
        "name": "columns",
        "workspace": str(workspace),
        "source": {"kind": "shapes", "train": 5, "evaluation": 1, "size": 64},
        "pool": {"shards": 2},
        "teachers": {"sam2": {"kind": "sam2"}, "mask2former": {"kind": "mask2former"}},
        "features": {"sam2": {}, "mask2former": {"grid": "native", "codec": "pca16-int8", "basis_pictures": 2}},
        "student": {"max_side": 64},
        "loss": {"distillation": {"sam2": {"reads": "patches"}, "mask2former": {"reads": "mask_features"}}},
        "resources": {"executor": "local", "one_pass": True, **resources},
    }
    return parse(Project, fields, "columns")


class World:
    """A project's steps and artifacts, of which some are made by name."""

    def __init__(self, config: Project):
        self.steps = {step.name: step for step in steps_of(config)}
        self.made = artifacts(list(self.steps.values()), Folder(config.workspace))

    def make(self, *names: str) -> dict[str, StepResult]:
        return {name: make_step(self.steps[name], self.made, lambda *_, **__: None) for name in self.steps if name in names}

    def up_to_columns(self) -> "World":
        self.make(*(name for name in self.steps if name.split("/")[0] in ("source", "images", "passport", "basis")))
        return self

    def along(self, name: str) -> list[str]:
        return [step.name for step in along(self.steps[name], self.made)]

    def summary(self, name: str) -> dict[str, Any]:
        record = self.made[name].record()
        assert record is not None
        return record.summary


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(project(tmp_path / "joint")).up_to_columns()


def test_the_first_of_a_pass_makes_the_other_which_then_has_its_own_record(world: World, tmp_path: Path):
    assert world.along(SAM2) == [MASK2FORMER] and world.along(MASK2FORMER) == []
    world.make(SAM2)
    assert state_of(world.made[MASK2FORMER]).done == 2
    later = world.make(MASK2FORMER)[MASK2FORMER]
    assert later.why == "made in the pass of features/sam2"
    assert world.summary(SAM2)[ONE_PASS] == [MASK2FORMER]
    assert world.summary(MASK2FORMER)["shards_made"] == 0 and world.summary(MASK2FORMER)[ONE_PASS_BY] == SAM2
    apart = World(project(tmp_path / "apart", one_pass=False)).up_to_columns()
    apart.make(*COLUMNS)
    assert not {ONE_PASS, ONE_PASS_BY} & (apart.summary(SAM2).keys() | apart.summary(MASK2FORMER).keys())
    assert digests(tmp_path / "joint") == digests(tmp_path / "apart")


def test_a_pass_is_taken_up_again_where_both_were_left(world: World):
    """The first died after its own shard, before the other's."""
    before = make_all(world)
    for name, lost in ((SAM2, [1]), (MASK2FORMER, [0, 1])):
        lose(world.made[name], lost)
    assert world.along(SAM2) == [MASK2FORMER]
    world.make(SAM2)
    assert world.made[MASK2FORMER].found().keys() == {1}
    world.make(MASK2FORMER)
    assert {name: world.made[name].record().digest for name in COLUMNS} == before  # type: ignore[union-attr]


def make_all(world: World) -> dict[str, str]:
    world.make(*COLUMNS)
    return {name: world.made[name].record().digest for name in COLUMNS}  # type: ignore[union-attr]


def lose(artifact: Artifact, shards: list[int]) -> None:
    for name in ("record.json", *map(artifact.shard_name, shards)):
        artifact.folder.remove(name)


def test_what_has_more_than_the_first_lacks_goes_its_own_way(world: World):
    make_all(world)
    kept = world.made[MASK2FORMER].read(0)
    lose(world.made[SAM2], [])
    lose(world.made[MASK2FORMER], [0, 1])
    assert world.along(SAM2) == []  # it has nothing left to make, but for its record
    lose(world.made[SAM2], [0])
    assert world.along(SAM2) == [MASK2FORMER]
    lose(world.made[SAM2], [1])
    world.made[MASK2FORMER].write(0, kept)
    assert world.along(SAM2) == []
    world.make(*COLUMNS)
    assert ONE_PASS not in world.summary(SAM2)
    assert world.summary(MASK2FORMER)["shards_made"] == 1


def test_what_is_complete_not_ready_or_not_chosen_is_not_taken_along(world: World, tmp_path: Path):
    world.make(MASK2FORMER)
    assert world.along(SAM2) == []
    fresh = World(project(tmp_path / "fresh"))
    fresh.make("source", "images", "passport/sam2", "passport/mask2former")
    assert fresh.along(SAM2) == []  # there is no basis yet
    (alone,) = [step for step in Run.of(project(tmp_path / "fresh"), [SAM2], []).of_part("build_data") if step.name == SAM2]
    assert alone.beside == []


@pytest.mark.parametrize("is_sealed", [True, False])
def test_what_is_stale_is_neither_overwritten_nor_in_the_way(world: World, tmp_path: Path, is_sealed: bool):
    make_all(world)
    changed = World(project(tmp_path / "joint").model_copy(update={"features": {"sam2": ColumnConfig()}}))
    lose(changed.made[SAM2], [0, 1])
    if not is_sealed:
        lose(changed.made[MASK2FORMER], [])
    before = digests(tmp_path / "joint" / MASK2FORMER)
    changed.make(SAM2)
    assert ONE_PASS not in changed.summary(SAM2)
    assert digests(tmp_path / "joint" / MASK2FORMER) == before
    with pytest.raises(StaleArtifact, match="codec"):
        changed.make(MASK2FORMER)


def test_a_pass_that_breaks_says_who_shared_it(world: World, tmp_path: Path):
    """The passport of one of the teachers is another network's."""
    passport = world.steps["passport/mask2former"]
    clear(world.made[passport.name])
    make_step(replace(passport, stage=PassportStage(teacher=Mask2FormerConfig(seed=1))), world.made, lambda *_, **__: None)
    with pytest.raises(StaleArtifact, match=r"passport/mask2former: .* shared a pass: features/sam2, features/mask2former\. "):
        world.make(SAM2)
    apart = World(project(tmp_path / "joint", one_pass=False))
    apart.make(SAM2)
    with pytest.raises(StaleArtifact) as refused:
        apart.make(MASK2FORMER)
    assert "shared a pass" not in str(refused.value)


def test_rows_that_failed_are_no_fault_of_the_pass(world: World):
    spoil(world.made["images"], number=0)
    with pytest.raises(StageFailed, match="1 of 6 rows failed") as judged:
        world.make(SAM2)
    assert "shared a pass" not in str(judged.value)


def spoil(images: Artifact, number: int) -> None:
    """The first picture of the shard is one that cannot be decoded, and the pool has not noticed."""
    rows = images.read(number).to_pylist()
    cut = rows[0]["bytes"][:50]
    rows[0] |= {"bytes": cut, "sha256": hashlib.sha256(cut).hexdigest()}
    images.folder.remove("record.json")
    images.write(number, IMAGES.rows(rows))
    now = datetime.now(UTC).isoformat()
    images.seal(now, now, {}, code="", packages={}, summary={}, failures=[])


def test_only_columns_with_the_same_resources_share_a_pass(tmp_path: Path):
    def beside(**resources: Any) -> list[str]:
        steps: list[Step] = steps_of(project(tmp_path, **resources))
        return [f"{step.name} {other.name}" for step in steps for other in step.beside]

    assert beside() == ["features/sam2 features/mask2former"]
    assert beside(steps={"features/sam2": {"batch": 4}}) == []
    assert beside(steps={"features": {"batch": 4}}) == ["features/sam2 features/mask2former"]
    assert beside(one_pass=False) == []


def test_a_plan_gives_the_first_the_memory_and_the_seconds_of_both(world: World, tmp_path: Path):
    measured = by_hand()
    measured.stages[MASK2FORMER] = measured.stages[SAM2]
    joint, apart = (memory_of(project(tmp_path / "joint", one_pass=each), measured) for each in (True, False))
    assert joint[SAM2] == apart[SAM2] + apart[MASK2FORMER]
    assert joint[MASK2FORMER] == apart[MASK2FORMER]
    make_all(world)
    took = {SAM2: Range.exactly(3), MASK2FORMER: Range.exactly(4)}
    plan = {name: StepForecast(name, Range.exactly(6), None, seconds) for name, seconds in took.items()}
    seconds = {each.step: each.foretold for each in compared(plan, world.made) if each.what == "seconds"}
    assert seconds == {SAM2: Range.exactly(7)}
    rows = {each.step: each.held for each in compared(plan, world.made) if each.what == "rows"}
    assert rows == dict.fromkeys(COLUMNS, True)


def memory_of(config: Project, measured: Measured) -> dict[str, Range]:
    steps = steps_of(config)
    found = estimate(config, steps, artifacts(steps, Folder(config.workspace)), measured, Prices())
    return {each.step: each.memory for each in found.steps if each.memory and each.step in COLUMNS}
