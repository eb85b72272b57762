"""The authors' recipes as they are shipped: each is shown the data it is about, and starts from a student of its sizes."""

import re
from pathlib import Path

import pytest

from flows.config import Project
from schemas.config import differences, override, parse, read_toml
from stages.sources.config import CocoSource
from tests.flows.small import ROOT

CONFIGS = ROOT / "flows" / "configs"
TUNED = sorted(CONFIGS.glob("finetune_*.toml"))
EXPRESSIONS = {"refcoco": 4, "refcoco+": 4, "refcocog": 4}
OSPREY = dict.fromkeys(map("osprey_{}".format, ("conversation", "short_form", "part_level", "lvis_positive_negative")), 1)
POINTED = {"pix2cap": 10, "osprey_detail_description": 10, "coco_classes": 1} | OSPREY
GROUNDED = {"gcg_refcocog": 1, "gcg_grandf": 10, "gcg_openpsg": 1, "gcg_flickr": 1}
MASKS = EXPRESSIONS | GROUNDED | {"pix2cap_masks": 2, "muse": 1, "coco_semantic": 1, "coco_instance": 1, "llava": 1}
SHOWN = {
    "pixel_sail_3b": MASKS | POINTED | {"grefcoco": 3},
    "ablation_undistilled_3b": MASKS | POINTED | {"grefcoco": 3},
    "ablation_unprompted_3b": MASKS | {"grefcoco": 4},
    "ablation_expressions": EXPRESSIONS | {"grefcoco": 4, "llava": 1},
    "ablation_grefcoco": {"grefcoco": 4},
    "ablation_grefcoco_radio": {"grefcoco": 4},
    "ablation_prompts": POINTED | {"llava": 1},
    "ablation_prompts_marks": POINTED | {"llava": 1, "pix2cap": 20},
    "ablation_pix2cap": {"pix2cap": 10},
    "ablation_pix2cap_marks": {"pix2cap": 20},
    "finetune_refcoco_3b": EXPRESSIONS,
    "finetune_grefcoco_3b": {"grefcoco": 4},
    "finetune_refcocog_caption_3b": {"refcocog_caption": 4},
    "finetune_reason_seg": {"reason_seg": 16},
}
ROW = re.compile(r"^\|[^|]+\| `(\w+)` \|([^|]+=[^|]+)\|$", re.MULTILINE)
HAD_BY_SET = ROW.findall((ROOT / "docs" / "ladder.md").read_text())


def project(path: Path, *sets: str) -> Project:
    return parse(Project, override(read_toml(path), sets), str(path))


def shown(recipe: Project) -> dict[str, float]:
    """How often training shows each data set that it shows at all."""
    assert isinstance(recipe.source, CocoSource)
    tasks = {(file.label, task) for file in recipe.source.files() if file.split != "evaluation" for task in file.tasks}
    # Of Osprey's files one has captions, the others conversations.
    tasks = {(name, task) for name, task in tasks if "osprey" not in name or (task == "caption") == ("detail" in name)}
    sizes = {f"{task}/{name}": 1 for name, task in tasks if task in recipe.samples.tasks}
    times = recipe.train.mixture.times(sizes)
    return {part.partition("/")[2]: count for part, count in times.items() if count}


@pytest.mark.parametrize("name", SHOWN)
def test_a_recipe_shows_the_data_it_is_about(name: str):
    assert shown(project(CONFIGS / f"{name}.toml")) == SHOWN[name]


@pytest.mark.parametrize("path", TUNED, ids=lambda path: path.stem)
def test_a_fine_tune_starts_from_a_student_of_its_sizes_and_has_no_teacher(path: Path):
    tuned = project(path)
    assert tuned.base is not None and tuned.base.folder == f"runs/{tuned.base.weights}/export"
    assert tuned.student == project(CONFIGS / f"{tuned.base.weights}.toml").student
    assert not tuned.columns


@pytest.mark.parametrize("teacher", ["sam2", "mask2former", "radio"])
def test_quick_runs_differ_in_their_teacher_alone(teacher: str):
    bare, taught = (
        project(CONFIGS / f"ablation_grefcoco{end}.toml").model_dump(
            mode="json", exclude={"name", "workspace", "report", "resources"}
        )
        for end in ("", f"_{teacher}")
    )
    narrower = ["student.mask_dim: 512 -> 256"] if teacher == "mask2former" else []
    tables = ("teachers", "features", "loss")
    assert [line for line in differences(bare, taught) if not line.startswith(tables)] == narrower
    assert taught["loss"]["distillation"].keys() == {teacher} == taught["teachers"].keys()


@pytest.mark.parametrize(("name", "sets"), HAD_BY_SET, ids=[name for name, _ in HAD_BY_SET])
def test_what_the_page_says_is_had_by_set_is(name: str, sets: str):
    path = CONFIGS / f"{name}.toml"
    settings = re.findall(r"`([^`=]+=[^`]+)`", sets)
    changed = differences(project(path).model_dump(mode="json"), project(path, *settings).model_dump(mode="json"))
    assert len(changed) == len(settings)
