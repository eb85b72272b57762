"""To learn from stored features is to learn from teachers that stand in the training loop.

The live way is the authors': each visit of a picture runs the teachers anew, and brings their own maps to the student's grid
and to bfloat16 where the loss is taken. The stored way is the real stage, in its default form.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from schemas.artifact import Artifact
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from schemas.storage import Folder
from stages.base import Resources, make_shard
from stages.features import FeaturesStage
from student.data.corpus import Corpus
from student.data.features import Column, Stored
from student.train_config import TrainConfig
from student.training.checkpoint import at
from student.training.run import METRICS, TrainSetup
from student.training.train import train
from teachers.base import Teacher
from teachers.build import build_teacher
from teachers.mask2former.config import Mask2FormerConfig
from teachers.sam2.config import Sam2Config
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.stores import FAST, Store, small_loss

TEACHERS = {"sam2": Sam2Config(), "mask2former": Mask2FormerConfig()}
CELLS = {"sam2": 1, "mask2former": 4}
RUN = {"stage": "train", "version": 1}
STEPS, BATCH = 20, 4


def patch_grid(name: str) -> PatchGrid:
    """The student's cells that the teacher is held against."""
    config = micro_config()
    return PatchGrid(patch=config.patch, max_side=config.max_side, cells=CELLS[name])


class Live(Corpus):
    """The samples, with features that the teachers make whenever a sample is read."""

    def __init__(self, teachers: Mapping[str, Teacher], **parts: Any):
        super().__init__(features={}, **parts)
        self._teachers, self.visits = teachers, 0
        layers = {name: (config.layer, config.feature_channels) for name, config in TEACHERS.items()}
        specs = {name: FeatureSpec(teacher=name, layer=layer, channels=c, grid="native") for name, (layer, c) in layers.items()}
        self.columns = {name: Column(spec) for name, spec in specs.items()}

    def maps(self, number: int) -> dict[str, Stored]:
        self.visits += 1
        image_HWC, features = self.picture(number), {}
        for name, teacher in self._teachers.items():
            (map_Chw,) = teacher.features([image_HWC], [None])
            grid = patch_grid(name).of(image_HWC.shape[1], image_HWC.shape[0])
            resized_1Chw = F.interpolate(torch.from_numpy(map_Chw)[None], size=grid, mode="bilinear", align_corners=False)
            features[name] = Stored(grid, resized_1Chw[0].to(torch.bfloat16))
        return features


def stored_features(store: Store, name: str) -> Artifact:
    """As `sailyard run` makes them, sealed."""
    stage = FeaturesStage(name=name, teacher=TEACHERS[name], grid=patch_grid(name))
    folder = store.folder.child(f"real/{name}")
    output = Artifact(folder, {"stage": "features", "config": stage.identity()}, stage.table(), store.images.shards, name)
    function = stage.open(Resources(executor="local"), {})
    for number in range(store.images.shards):
        assert make_shard(function, {"images": store.images}, output, number).failed == 0
    output.seal("", "", {}, code="", packages={})
    return output


def learned(corpus: Corpus, folder: Folder, steps: int = STEPS) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """A line of losses for each step, and the weights at the end."""
    config = TrainConfig(steps=steps, batch=BATCH, micro_batch=2, log_every=steps)
    parts = {"student": micro_config(), "loss": small_loss(), "optim": FAST, "train": config, "identity": RUN}
    train(TrainSetup(**parts, vocabulary=micro_vocabulary(), corpus=corpus), folder, lambda row: None)
    end = at(folder, steps, RUN)
    assert end
    return [json.loads(line) for line in folder.read(METRICS).splitlines()], end.model() | end.training()


@pytest.fixture
def parts(small_store: Store) -> dict[str, Any]:
    rest = {"vocabulary": micro_vocabulary(), "config": micro_config()}
    return {"samples": small_store.samples, "images": small_store.images, **rest}


def test_stored_features_teach_what_live_teachers_do(small_store: Store, parts: dict[str, Any]):
    features = {name: stored_features(small_store, name) for name in TEACHERS}
    live = Live({name: build_teacher(config) for name, config in TEACHERS.items()}, **parts)
    rows, weights = learned(Corpus(features=features, **parts), small_store.folder.child("stored"))
    live_rows, live_weights = learned(live, small_store.folder.child("live"))
    assert live.visits == STEPS * BATCH
    assert rows == live_rows
    assert all(row[f"distill/{name}"] > 0 for row in rows for name in TEACHERS)
    for name, weight in live_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5, msg=name)


def test_another_teacher_would_be_noticed(small_store: Store, parts: dict[str, Any]):
    """What the other test compares does depend on what the teachers say."""
    features = {name: stored_features(small_store, name) for name in TEACHERS}
    others = {name: config.model_copy(update={"seed": 1}) for name, config in TEACHERS.items()}
    rows, _ = learned(Corpus(features=features, **parts), small_store.folder.child("stored"), steps=2)
    live = Live({name: build_teacher(config) for name, config in others.items()}, **parts)
    live_rows, _ = learned(live, small_store.folder.child("live"), steps=2)
    assert rows != live_rows
