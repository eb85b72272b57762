"""What training takes, tried on dialogues that are made up or the project's own, and reckoned where it is too much to try."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.dialogue import Sample, Turn
from schemas.errors import DataError
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from schemas.tables import plain
from stages.base import Resources
from stages.probe import look_at
from stages.probe_train import LEARN, LOAD, RECKONED, Dialogues, left_behind, train_pace
from stages.train import TrainStage
from student.config import LossConfig, StudentConfig, TeacherLoss
from student.train_config import TrainConfig
from tests.student.micro import micro_config, micro_vocabulary


def pictures(rng: np.random.Generator, count: int, side: int = 48) -> list[dict[str, Any]]:
    files = []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    return look_at([lambda data=data: data for data in files])[0]


def stage(student: StudentConfig | None = None, recompute: bool = False, **loss: TeacherLoss) -> TrainStage:
    sizes = {"steps": 10, "batch": 4, "micro_batch": 2, "checkpoint_every": 5, "keep": 1}
    train = TrainConfig(**sizes, precision="bfloat16", recompute=recompute)
    return TrainStage(student=student or micro_config(), loss=LossConfig(points=64, distillation=loss), train=train)


@pytest.mark.parametrize("codec", ["bf16", "pca2-int8"])
def test_a_student_is_tried_by_its_own_step(codec: str, rng: np.random.Generator):
    spec = FeatureSpec(teacher="a", layer="x", channels=8, grid=PatchGrid(patch=16, max_side=64, cells=1), codec=codec)
    dialogues = Dialogues(pictures(rng, 3), {"a": spec}, 320, turns=4)
    found = train_pace(stage(recompute=codec == "bf16", a=TeacherLoss(reads="patches")), Resources(), dialogues)
    assert found.seconds.keys() == {LEARN, LOAD}
    assert all(0 < each.low <= each.likely <= each.high < 60 for each in found.seconds.values())
    assert found.memory > 100 << 20
    assert found.device_memory == 0


def test_a_student_of_which_this_machine_is_not_up_to_a_step_is_reckoned(rng: np.random.Generator):
    """The one of the paper, on a large picture: half a billion weights, and not one of them is drawn."""
    found = train_pace(stage(StudentConfig()), Resources(), Dialogues(pictures(rng, 1, 1024), {}, 320))
    assert found.seconds.keys() == {RECKONED, LOAD}
    learn = found.seconds[RECKONED]
    assert learn.low > 2 and learn.high == pytest.approx(3 * learn.low, rel=0.5)
    assert found.memory > 300e6 * 16


def test_the_projects_own_dialogues_are_tried_as_often_as_training_shows_them(rng: np.random.Generator):
    """One of them is never shown, and cannot be: its mask has no [SEG]."""
    seen = pictures(rng, 2)
    said = [Turn("What is <Prompt1>?", "A square.")]
    rows = [plain(Sample(str(n), each["image_key"], "train", "caption", said)) for n, each in enumerate(seen)]
    broken = rows[0] | {"turns": [{"question": "Where?", "answer": "It is [SEG]."}]}
    words = micro_vocabulary().to_json()
    for samples, times in (([broken, rows[1]], [0.0, 1.0]), (rows[:1], [6.0])):
        found = train_pace(stage(), Resources(), Dialogues(seen, {}, words, samples=samples, times=times))
        assert found.seconds[LEARN].low > 0
    with pytest.raises(DataError, match=r"1 \[SEG\] in the answers but 0 masks"):
        train_pace(stage(), Resources(), Dialogues(seen, {}, words, samples=[broken], times=[1.0]))


def test_a_finished_run_leaves_the_first_weights_and_the_last_checkpoints():
    config = TrainConfig(steps=10, checkpoint_every=4, keep=2)
    assert left_behind(config, 100) == 400 + 2 * 1200
    assert left_behind(config.model_copy(update={"checkpoint_every": 500}), 100) == 400 + 1200
