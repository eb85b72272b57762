"""A teacher that the project teaches itself, in the DAG: who takes its weights in, and what they are when those change."""

from pathlib import Path

import pytest

from flows.config import Project
from flows.graph import Step, above, artifacts, steps_of
from flows.states import state_of
from flows.steps import make_step
from schemas.artifact import Artifact
from schemas.config import override, parse, read_toml
from schemas.errors import BrokenArtifact, ConfigError, StaleArtifact
from schemas.storage import Folder
from tests.stages.scenes import scenes, write

CONFIG = Path(__file__).parents[2] / "flows" / "configs" / "teacher_micro.toml"
SETTINGS = ["pool.shards=2", "teach.panoptic.steps=2", "teach.panoptic.batch=2", "teach.panoptic.held_out=1"]
SETTINGS += ["teachers.panoptic.shortest_edge=64", "resources.executor=local", "resources.steps.teach.threads=1"]
TAUGHT = ["teach/panoptic", "passport/panoptic", "features/panoptic"]
OPENERS = ["passport/panoptic", "features/panoptic", "segments/panoptic", "certificate/panoptic"]


def project(workspace: Path, *settings: str) -> Project:
    data = override(read_toml(CONFIG), [*SETTINGS, f"workspace={workspace}", *settings])
    return parse(Project, data, str(CONFIG))


def planned(project: Project) -> tuple[dict[str, Step], dict[str, Artifact]]:
    steps = steps_of(project)
    return {step.name: step for step in steps}, artifacts(steps, Folder(project.workspace))


def test_whoever_opens_it_takes_its_weights_in(tmp_path):
    steps, found = planned(project(tmp_path))
    assert [name for name, step in steps.items() if step.roles.get("weights")] == OPENERS
    for name in OPENERS:
        assert steps[name].stage.opens().folder == found["teach/panoptic"].folder.path()
    assert "teach/panoptic" in above(list(steps.values()), ["certificate/panoptic"])


def test_taught_otherwise_it_is_another_teacher(tmp_path):
    _, before = planned(project(tmp_path))
    _, after = planned(project(tmp_path, "teach.panoptic.steps=3"))
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    follow = {"train", "predictions/trained", "predictions/untrained", "report"}
    assert changed == {"teach/panoptic", *OPENERS, *follow}
    _, elsewhere = planned(project(tmp_path / "elsewhere"))
    assert {name: each.fingerprint for name, each in before.items()} == {n: each.fingerprint for n, each in elsewhere.items()}


def test_its_features_are_made_of_the_weights_and_stale_with_them(tmp_path):
    steps, found = planned(project(tmp_path))
    write(found["images"], found["annotations"], list(scenes(3, 1)))
    with pytest.raises(BrokenArtifact, match="its inputs are not complete: teach/panoptic"):
        make_step(steps["features/panoptic"], found, lambda *told, **more: None)
    made = [make_step(steps[name], found, lambda *told, **more: None) for name in TAUGHT]
    assert [each.how for each in made] == ["computed"] * 3
    record = found["teach/panoptic"].record()
    assert record.summary["scores"].keys() == {"taught", "random"}
    assert found["features/panoptic"].record().inputs["weights"]["digest"] == record.digest
    assert make_step(steps["features/panoptic"], found, lambda *told, **more: None).how == "reused"

    other_steps, other = planned(project(tmp_path, "teach.panoptic.steps=3"))
    assert state_of(other["teach/panoptic"]).kind == "stale"
    state = state_of(other["features/panoptic"], other_steps["features/panoptic"].inputs_in(other))
    assert (state.kind, state.reason, state.by_inputs) == ("stale", "input weights changed", True)
    with pytest.raises(StaleArtifact, match="learning.steps: 2 -> 3"):
        make_step(other_steps["teach/panoptic"], other, lambda *told, **more: None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["teachers.mask2former.weights=taught"], "teachers.mask2former has weights = 'taught': it takes both"),
        (["teach.mask2former={}"], r"there is \[teach.mask2former\]: it takes both"),
        (["teachers.sam2.weights=taught", "teach.sam2={}"], "only mask2former can be taught, not sam2"),
        (["teach.panoptic.step=3"], "unknown key teach.panoptic.step .did you mean steps"),
    ],
)
def test_a_teacher_and_its_lessons_go_together(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        project(tmp_path, *settings)
