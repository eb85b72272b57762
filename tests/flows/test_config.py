"""The project file: what it accepts, and how it says what is wrong with it."""

import shutil
from typing import Any

import pytest

from flows.config import Project
from flows.distill import Run
from flows.graph import artifacts, choose, steps_of
from flows.states import state_of
from schemas.artifact import Artifact
from schemas.config import override, parse, read_toml
from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from stages.weights import ABSENT
from tests.flows.conftest import QUICKSTART


def project(*sets: str) -> Project:
    return parse(Project, override(read_toml(QUICKSTART), sets), "quickstart.toml")


def fingerprints(*sets: str) -> dict[str, str]:
    return {name: made.fingerprint for name, made in artifacts(steps_of(project(*sets)), Folder("nowhere")).items()}


def changed(*sets: str) -> set[str]:
    """The steps whose identity the overrides change."""
    before, after = fingerprints(), fingerprints(*sets)
    return {name for name in before if before[name] != after.get(name)}


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ("train.step=3", "unknown key train.step (did you mean steps?)"),
        ("teachers.sam2.wights='random'", "did you mean weights?"),
        ("segments.mask2former.teacher='mask3former'", "segments.mask2former.teacher names 'mask3former'"),
        ("prompts.segments='truth'", "prompts.segments names 'truth', there is only ground_truth, mask2former"),
        ("teachers.SAM={kind='sam2'}", "teachers.SAM"),
        ("resources.steps.features.worker=2", "did you mean workers?"),
        ("resources.workers='many'", "resources.workers"),
        ("samples.prompts=99", "exceeds student.prompts"),
        ("student.eve={side=128}", "features.sam2: a student in the layout of EVEv2 has other patches"),
        ("prompts.segments='mask2former'", "prompts.segments = 'mask2former' are proposals"),
        ("samples.prompt_kinds=['box', 'point']; prompts.kinds=['box', 'mask']", "prompts.kinds lacks point"),
        ("prompts.kinds=['box']; samples.prompt_kinds=['box']", "prompts.kinds lacks mask, which evaluation points with"),
    ],
)
def test_what_is_wrong_is_named(sets, says):
    with pytest.raises(ConfigError) as error:
        project(*sets.split("; "))
    assert says in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ("samples.forms={no_such_set='short'}", "samples.forms names 'no_such_set', there is only refcoco, refcoco+"),
        ("samples.forms={'llava/train'='semantic'}", "'semantic' is for segmentation, not conversation"),
        ("samples.forms={refcoco='classified'}", "'classified' is for reference, not segmentation"),
        (
            "train.mixture.repeats={'segmentation/refcco'=2}",
            "train.mixture names 'segmentation/refcco', there is only caption/",
        ),
        ("train.mixture.repeats={'caption/refcoco'=2}", "train.mixture names 'caption/refcoco'"),
        ("train.mixture.repeats={'segmentation/ref'=2}", "train.mixture names 'segmentation/ref'"),
        ("train.mixture.repeats={choice=2}", "train.mixture names 'choice'"),
        ("samples.tasks=['segmentation', 'conversation']", "train.mixture names 'caption/pix2cap'"),
        (
            "samples.by_source=false",
            "names 'segmentation/refcoco', there is only caption, conversation, reference, segmentation",
        ),
        ("source.semantic=[{path='other.json', split='train'}]", "semantic: other.json is not among panoptic"),
    ],
)
def test_what_is_said_of_a_data_set_that_the_source_has_not_is_named(sets, says):
    with pytest.raises(ConfigError) as error:
        parse(Project, override(read_toml(QUICKSTART.with_name("ablation_undistilled.toml")), [sets]), "full.toml")
    assert says in str(error.value)


def test_a_mixture_may_name_tasks_data_sets_and_splits_of_theirs():
    repeats = "train.mixture.repeats={segmentation=2, 'segmentation/refcoco'=3, 'segmentation/refcoco/train'=4}"
    sets = [repeats, "samples.forms={'refcoco/train'='described'}"]
    full_size = read_toml(QUICKSTART.with_name("full_size.toml"))
    assert len(parse(Project, override(full_size, sets), "full.toml").train.mixture.repeats) == 3


def test_resources_of_a_step_are_the_general_then_the_groups_then_its_own():
    resources = project(
        "resources.workers=3", "resources.steps.features.workers=5", "resources.steps.features/sam2.batch=1"
    ).resources
    assert resources.of("images").workers == 3
    assert resources.of("features/mask2former").workers == 5
    assert (resources.of("features/sam2").workers, resources.of("features/sam2").batch) == (5, 1)


def test_an_unknown_step_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no step features/sam \(did you mean features/sam2\?\)"):
        choose(steps_of(project()), ["features/sam"], "--only")
    with pytest.raises(ConfigError, match="resources.steps"):
        steps_of(project("resources.steps.feature.workers=2"))


def test_a_group_names_all_its_steps_in_order():
    assert choose(steps_of(project()), ["prompts", "features"], "--only") == [
        "features/sam2",
        "features/mask2former",
        "prompts",
    ]


def test_steps_come_after_what_they_take_in():
    seen: set[str] = set()
    for step in steps_of(project()):
        assert set(step.roles.values()) <= seen
        seen.add(step.name)


def test_execution_changes_no_identity():
    assert changed("resources.workers=7", "workspace='elsewhere'", "train.checkpoint_every=3", "retries=2") == set()


def test_a_change_reaches_what_follows_and_nothing_else():
    assert changed("teachers.sam2.seed=1") == {
        "passport/sam2",
        "features/sam2",
        "certificate/sam2",
        "train",
        "predictions/trained",
        "predictions/untrained",
        "report",
    }
    assert changed("report.examples=3") == {"report"}
    assert "images" not in changed("prompts.seed=5")
    assert changed("source.seed=1") == {name for name in fingerprints() if not name.startswith("passport/")}
    assert "train" not in changed("certificate.pictures=3"), "a gate is no part of what the weights are known by"


def test_pictures_of_ones_own_need_no_source_step(tmp_path):
    (tmp_path / "one.png").write_bytes(b"not looked at")
    (tmp_path / "instances.json").write_text("{}")
    source: Any = {"kind": "coco", "images": [str(tmp_path)], "instances": [str(tmp_path / "instances.json")]}
    steps = steps_of(parse(Project, {**read_toml(QUICKSTART), "source": source}, "own.toml"))
    assert steps[0].name == "images"
    assert steps[0].inputs == {}
    assert artifacts(steps, Folder(str(tmp_path)))["images"].identity["outside"]


PUBLISHED = ("teachers.sam2.weights='facebook/sam2.1-hiera-tiny'", "teachers.sam2.folder='{folder}'")


def test_weights_that_are_gone_leave_what_they_made(tmp_path):
    folder, workspace = tmp_path / "weights", Folder(str(tmp_path / "runs"))
    published = [each.format(folder=folder) for each in PUBLISHED]
    config = project(*published, "pool.shards=1", f"workspace='{workspace.url}'")

    def features() -> Artifact:
        return artifacts(steps_of(config), workspace)["features/sam2"]

    assert features().identity["outside"] == {"weights": ABSENT}
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"tensors")
    there = features()
    there.write(0, there.table.rows([]))
    there.seal("2020-01-01T00:00:00", "2020-01-01T00:00:01", {}, code="", packages={})
    (folder / "README.md").write_text("a card")
    assert features().fingerprint == there.fingerprint
    shutil.rmtree(folder)
    assert state_of(features()).kind == "done"
    with pytest.raises(DataError, match="features/sam2: the weights that it needs are not there"):
        Run.of(config, ["features/sam2"], ["features/sam2"]).look_ahead()
    assert state_of(features()).kind == "done", "a rebuild that cannot be takes nothing away"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"other tensors")
    assert "outside.weights" in state_of(features()).reason


def test_a_run_that_lacks_weights_takes_nothing_away(tmp_path):
    config = project(*(each.format(folder=tmp_path / "none") for each in PUBLISHED), f"workspace='{tmp_path}/runs'")
    kept = Folder(f"{tmp_path}/runs/features/mask2former")
    kept.write("shard-00000.arrow", b"features")
    with pytest.raises(DataError, match="passport/sam2: the weights that it needs are not there"):
        Run.of(config, [], ["features"]).look_ahead()
    assert kept.exists("shard-00000.arrow")


def test_a_rebuild_must_be_among_the_steps_of_the_run():
    with pytest.raises(ConfigError, match="--rebuild: this run does not make prompts. It makes samples"):
        Run.of(project(), ["samples"], ["prompts"])
    with pytest.raises(ConfigError, match="--rebuild: this run does not make train"):
        Run.of(project(), [], ["train"], "build_data")
    with pytest.raises(ConfigError, match="--only: this run does not make train"):
        Run.of(project(), ["train"], [], "build_data")
    certificates = {"certificate/sam2", "certificate/mask2former"}
    assert set(Run.of(project(), [], [], "train_student").chosen) == {"vocabulary", *certificates, "train"}
