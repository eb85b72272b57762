"""A teacher that is taught: what it learns from, what it is judged by, and the folder that others open it from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from schemas.artifact import Artifact, verify
from schemas.errors import ConfigError, DataError
from schemas.pictures import decode
from schemas.storage import Folder
from schemas.tables import ANNOTATIONS, IMAGES
from stages.base import Inputs, Outcome, Resources
from stages.teach import TeachStage, labels_of, some_scenes, taught
from teachers.build import build_segmenter, build_teacher
from teachers.mask2former.config import Learning, Mask2FormerConfig
from teachers.mask2former.quality import Tally
from tests.stages.scenes import scenes, write

LOCAL = Resources(executor="local")
TEACHER = Mask2FormerConfig(weights="taught", shortest_edge=64, longest_edge=64, min_score=0.0, min_overlap=0.0)
LEARNING = Learning(steps=30, batch=4, learning_rate=3e-3, warmup=5, points=64, held_out=6)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Of thirty scenes, six of them to be evaluated."""
    root = Folder(str(tmp_path_factory.mktemp("pool")))
    images = Artifact(root.child("images"), {"of": "images"}, IMAGES, 3, "images")
    annotations = Artifact(root.child("annotations"), {"of": "annotations"}, ANNOTATIONS, 3, "annotations")
    write(images, annotations, list(scenes(24, 6)))
    return {"images": images, "annotations": annotations}


def made(pool: Inputs, folder: Folder, learning: Learning = LEARNING) -> tuple[Artifact, Outcome]:
    told: list[tuple[int, int]] = []
    output, stage = Artifact(folder, {"a": 1}, name="teach/a"), TeachStage(teacher=TEACHER, learning=learning)
    outcome = stage.run(pool, output, LOCAL, lambda done, total, unit, note="": told.append((done, total)))
    output.seal("now", "then", pool, code="", packages={}, summary=outcome.summary)
    assert told == [(step, learning.steps) for step in range(1, learning.steps + 1)]
    return output, outcome


@pytest.fixture(scope="module")
def lesson(pool: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Outcome]:
    return made(pool, Folder(str(tmp_path_factory.mktemp("taught"))))


def test_it_finds_more_in_pictures_it_has_not_seen_than_chance(lesson):
    output, outcome = lesson
    assert verify(output.folder) == [] and (outcome.summary["pictures"], outcome.summary["held_out"]) == (24, 6)
    ends, scores = outcome.summary["loss"], outcome.summary["scores"]
    assert sum(ends["last"].values()) < 0.9 * sum(ends["first"].values())
    assert scores["taught"]["mean_iou"] > scores["random"]["mean_iou"] + 0.1


def test_its_folder_opens_as_a_teacher_and_as_a_segmenter(lesson, pool):
    config = taught(TEACHER, lesson[0].folder)
    (scene, *_), _ = some_scenes(pool, 1, 1)
    image = decode(scene.data)
    random = config.model_copy(update={"weights": "random"})
    maps = [build_teacher(each).features([image], [None])[0] for each in (config, random)]
    assert maps[0].shape == maps[1].shape == (64, 16, 16) and not np.allclose(*maps, atol=0.1)
    names = set(labels_of(pool["annotations"], TEACHER))
    assert {found.category for found in build_segmenter(config).segments(image)} <= names
    published = json.loads(lesson[0].folder.read("config.json"))
    assert names <= set(published["id2label"].values()) and published["model_type"] == "mask2former"


def test_the_same_lessons_give_the_same_bytes_in_any_store(pool, store):
    digests = []
    for name in ("a", "b"):
        output, _ = made(pool, store.child(name), LEARNING.model_copy(update={"steps": 2}))
        digests.append(output.record().digest)
    assert digests[0] == digests[1]
    assert len(build_segmenter(taught(TEACHER, output.folder)).segments(np.zeros((64, 64, 3), np.uint8))) >= 0


def test_what_is_evaluated_is_not_learned_from(pool):
    shown, kept = some_scenes(pool, 100, 100)
    assert (len(shown), len(kept)) == (24, 6) and not {scene.data for scene in shown} & {scene.data for scene in kept}
    few = some_scenes(pool, 5, 2)
    assert (few[0], few[1]) == (shown[:5], kept[:2])


def test_where_nothing_is_evaluated_some_are_held_out_all_the_same(tmp_path):
    root = Folder(str(tmp_path))
    images, annotations = (Artifact(root.child(t.name), {"of": t.name}, t, 1, t.name) for t in (IMAGES, ANNOTATIONS))
    write(images, annotations, list(scenes(3, 0)))
    inputs = {"images": images, "annotations": annotations}
    shown, kept = some_scenes(inputs, 100, 1)
    assert (len(shown), len(kept)) == (2, 1)
    with pytest.raises(DataError, match="no picture with regions is left"):
        some_scenes(inputs, 100, 3)


def test_a_teacher_without_a_label_for_each_category_is_refused(pool, tmp_path: Path):
    stage = TeachStage(teacher=TEACHER.model_copy(update={"things": 5}))
    with pytest.raises(ConfigError, match=r"8 kinds of things and . of stuff, the teacher has fewer.*Set its things = 8"):
        stage.run(pool, Artifact(Folder(str(tmp_path)), {}), LOCAL, lambda *told, **more: None)


def test_labels_are_things_then_stuff_without_crowds_and_the_nameless(pool, tmp_path):
    pairs = list(scenes(1, 0))
    objects = [replace(each) for each in pairs[0][1]["objects"]]
    objects += [replace(objects[0], category=""), replace(objects[0], category="crowd", is_crowd=True)]
    pairs[0][1]["objects"] = objects
    root = Folder(str(tmp_path))
    images, annotations = (Artifact(root.child(t.name), {"of": t.name}, t, 1, t.name) for t in (IMAGES, ANNOTATIONS))
    write(images, annotations, pairs)
    labels = labels_of(annotations, TEACHER)
    things = sorted({each.category for each in objects[:-2] if each.is_thing})
    assert [name for name, label in labels.items() if label < 8] == things and "" not in labels and "crowd" not in labels
    assert [label for label in labels.values() if label >= 8] == [*range(8, 8 + len(labels) - len(things))]


def box(left: int, right: int) -> np.ndarray:
    mask_HW = np.zeros((4, 16), bool)
    mask_HW[:, left:right] = True
    return mask_HW


def test_scores_of_hand_made_regions():
    tally = Tally(3)
    tally.add([(0, box(0, 8)), (1, box(8, 16))], [(0, box(0, 8)), (2, box(8, 14))])
    tally.add([(0, box(0, 4))], [])
    scores = tally.scores()
    assert scores["mean_iou"] == pytest.approx((1 + 6 / 8 + 0) / 3, abs=1e-4)
    assert scores["class_accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    # Label 0: one found of two, and one proposal; label 1 lost, label 2 made up.
    assert scores["panoptic_quality"] == pytest.approx((1 / (1 + 0.5) + 0 + 0) / 3, abs=1e-4)
